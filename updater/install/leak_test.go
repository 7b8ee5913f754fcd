//go:build linux

package install

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if actor := os.Getenv("INSTALL_TEST_ACTOR"); actor != "" {
		os.Exit(runActor(actor))
	}
	goleak.VerifyTestMain(m)
}
