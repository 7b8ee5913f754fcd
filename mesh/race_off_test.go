//go:build !race

package mesh

import "testing"

func atLength(*testing.T) {}
