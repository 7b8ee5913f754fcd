//go:build linux

package updater

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flushTimeout = patience
	goleak.VerifyTestMain(m)
}
