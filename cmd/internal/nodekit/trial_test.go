package nodekit

import (
	"io"
	"log/slog"
	"testing"
	"time"
)

// What the flag says is what the supervisor does: no soak is no soak, though an empty
// field of its configuration is the default.
func TestSoakReachesTheSupervisor(t *testing.T) {
	for _, c := range []struct{ flag, want time.Duration }{{0, -1}, {time.Second, time.Second}} {
		o := TrialOptions{Soak: c.flag}
		if got := o.Supervisor(t.TempDir(), false, io.Discard, slog.New(slog.DiscardHandler), nil).Soak; got != c.want {
			t.Errorf("--soak %v: the supervisor is told %v, want %v", c.flag, got, c.want)
		}
	}
}
