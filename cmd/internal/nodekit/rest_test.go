package nodekit

import (
	"io"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/spf13/cobra"
)

func TestOneCoreUnlessTheEnvironmentSaysOtherwise(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	runtime.GOMAXPROCS(3)
	t.Setenv("GOMAXPROCS", "3")
	KeepToOneCore()
	if n := runtime.GOMAXPROCS(0); n != 3 {
		t.Errorf("GOMAXPROCS=3 in the environment gives %d", n)
	}
	t.Setenv("GOMAXPROCS", "")
	KeepToOneCore()
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("it runs on %d cores", n)
	}
}

// TestAnAgentAndItsSupervisorRunOnOneCore starts both as far as their first error.
func TestAnAgentAndItsSupervisorRunOnOneCore(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "")
	t.Setenv("GOGC", "100")
	for name, row := range map[string]struct {
		supervised bool
		also       []AlsoSegment
		cores      int
	}{
		"supervisor": {cores: 1}, "agent": {supervised: true, cores: 1},
		"supervisor of a relay": {also: []AlsoSegment{{Name: "dmz"}}, cores: 1}, "relay": {supervised: true, also: []AlsoSegment{{Name: "dmz"}}, cores: 3},
	} {
		if row.supervised {
			t.Setenv("MOULT_SUPERVISED", "1")
		} else {
			t.Setenv("MOULT_SUPERVISED", "")
		}
		runtime.GOMAXPROCS(3)
		var o AgentOptions
		o.RegisterFlags(&cobra.Command{})
		o.Also, o.Data, o.Trial.Binary = row.also, filepath.Join(t.TempDir(), "data"), t.TempDir()
		if err := RunAgent(t.Context(), o, io.Discard, io.Discard); err == nil {
			t.Fatalf("%s: it started", name)
		}
		if n := runtime.GOMAXPROCS(0); n != row.cores {
			t.Errorf("%s: on %d cores, not %d", name, n, row.cores)
		}
	}
}
