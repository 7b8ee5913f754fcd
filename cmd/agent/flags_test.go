package agent

import (
	"flag"
	"io"
	"testing"
	"time"
)

// --soak 0 is no soak; without the flag it is the default of `moult agent`.
func TestSoakFlag(t *testing.T) {
	for _, c := range []struct {
		args []string
		want time.Duration
	}{
		{nil, 5 * time.Second},
		{[]string{"--soak", "0"}, 0},
		{[]string{"--soak", "2s"}, 2 * time.Second},
	} {
		o := Options{Version: "1.0.0", Data: t.TempDir()}
		f := flag.NewFlagSet("program", flag.ContinueOnError)
		f.SetOutput(io.Discard)
		o.Flags(f)
		if err := f.Parse(append(c.args, "--name", "a", "--join", "127.0.0.1:1")); err != nil {
			t.Fatal(err)
		}
		n, err := o.node()
		if err != nil || n.Trial.Soak != c.want {
			t.Errorf("%v: the soak is %v (%v), want %v", c.args, n.Trial.Soak, err, c.want)
		}
	}
}
