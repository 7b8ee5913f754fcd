//go:build race

package mesh

import "testing"

// atLength is for simulations of many hosts and minutes. Under the race detector
// Go 1.26 loses count in them and ends the whole test binary (golang/go issue
// 78156), so they run without it, in a run of their own: see the Makefile.
func atLength(t *testing.T) {
	t.Helper()
	t.Skip("a long simulation: it runs without the race detector, which make test does next")
}
