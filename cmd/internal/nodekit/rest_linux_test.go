package nodekit

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// Only what lies in the file unchanged may be given back: relocated addresses, or a
// debugger's breakpoints, would be lost.
func TestOnlyCleanPagesOfTheProgramAreDropped(t *testing.T) {
	const smaps = `00400000-00f19000 r-xp 00000000 fe:00 1234                               /usr/bin/moult
Rss:                9056 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
00f19000-01a74000 r--p 00b19000 fe:00 1234                               /usr/bin/moult
Anonymous:             4 kB
01a74000-01b05000 rw-p 01674000 fe:00 1234                               /usr/bin/moult
Anonymous:             0 kB
01b05000-03b51000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 fe:00 99                         /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000001000-7f0000002000 r--p 00b19000 fe:00 1234                       /usr/bin/moult
Anonymous:             0 kB
`
	got, err := cleanSpans(strings.NewReader(smaps), "/usr/bin/moult")
	want := []span{{0x400000, 0xf19000}, {0x7f0000001000, 0x7f0000002000}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("dropped are %x, %v; want %x", got, err, want)
	}
	for _, damaged := range []string{"00400000 r-xp 0 fe:00 1 /usr/bin/moult\n", "word\n", "x-y r-xp 0 fe:00 1 /usr/bin/moult\n"} {
		if got, err := cleanSpans(strings.NewReader(damaged), "/usr/bin/moult"); err == nil {
			t.Errorf("%q gives %x", damaged, got)
		}
	}
}

// A process that gives its program's pages back goes on, with less in memory.
func TestProgramPagesAreDropped(t *testing.T) {
	before := residentFile(t)
	if err := dropProgramPages(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after > before*3/4 {
		t.Errorf("of %d bytes of files in memory %d are left", before, after)
	}
}

// residentFile is how many bytes of files this process has in memory.
func residentFile(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kB int
		if rest, ok := strings.CutPrefix(line, "RssFile:"); ok {
			if _, err := fmt.Sscan(rest, &kB); err != nil {
				t.Fatal(err)
			}
			return kB << 10
		}
	}
	t.Fatal("/proc/self/status does not tell")
	return 0
}
