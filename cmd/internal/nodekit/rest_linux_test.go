package nodekit

import (
	"fmt"
	"os"
	"runtime"
	"slices"
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
	var p programPages
	want := []span{{0x400000, 0xf19000}, {0x7f0000001000, 0x7f0000002000}}
	for range 2 { // what was found before is forgotten
		if err := p.read(strings.NewReader(smaps), "/usr/bin/moult"); err != nil || !slices.Equal(p.clean, want) {
			t.Errorf("dropped are %x, %v; want %x", p.clean, err, want)
		}
	}
	for _, damaged := range []string{"00400000 r-xp 0 fe:00 1 /usr/bin/moult\n", "word\n", "x-y r-xp 0 fe:00 1 /usr/bin/moult\n"} {
		if err := p.read(strings.NewReader(damaged), "/usr/bin/moult"); err == nil {
			t.Errorf("%q gives %x", damaged, p.clean)
		}
	}
}

// A process that gives its program's pages back goes on, with less in memory.
func TestProgramPagesAreDropped(t *testing.T) {
	before := residentFile(t)
	var p programPages
	if err := p.drop(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after > before*3/4 {
		t.Errorf("of %d bytes of files in memory %d are left", before, after)
	}
}

// To look every few seconds makes no work for the collector.
func TestLookingForProgramPagesAllocatesLittle(t *testing.T) {
	var p programPages
	look := func() {
		if err := p.look(); err != nil {
			t.Fatal(err)
		}
	}
	look()
	const times = 50
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range times {
		look()
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / times; each > 2<<10 {
		t.Errorf("a look allocates %d bytes", each)
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
