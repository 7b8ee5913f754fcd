package artifact

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"moult/updater/internal/disktest"
)

// onDisk puts the world's store on a file system of its own.
func (w *world) onDisk(disk string) {
	w.t.Helper()
	w.dir = disk + "/artifacts"
	w.store = mustOpen(w.t, w.dir)
}

func (w *world) mustHoldNothing() {
	w.t.Helper()
	entries, err := os.ReadDir(w.dir)
	if err != nil || len(entries) != 0 {
		w.t.Errorf("the store's directory holds %v, %v", entries, err)
	}
}

// The disk fills up while the artifact comes in: the fetch ends, and what it
// wrote does not add to the trouble.
func TestDiskFillsUpDuringAFetch(t *testing.T) {
	disk := disktest.Small(t, 8<<10)
	w := newWorld(t, 4<<20)
	w.onDisk(disk)
	w.peer("honest", 0, w.honest())
	req := w.request()
	var giveBack func()
	req.Progress = func(int64, Peer) {
		if giveBack == nil {
			giveBack = disktest.Fill(t, disk, 64<<10)
		}
	}
	_, err := Fetch(t.Context(), req)
	if !errors.Is(err, ErrDiskFull) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("error is %v, want a full disk", err)
	}
	for _, text := range []string{"MB are free in " + w.dir, "free some space and start the update again"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
	w.mustHoldNothing()
	giveBack()
	w.fetch(t.Context(), w.request())
}

// What cannot end does not begin, and what is here already counts.
func TestRoomIsCheckedFirst(t *testing.T) {
	disk := disktest.Small(t, 8<<10)
	w := newWorld(t, 4<<20)
	w.onDisk(disk)
	w.peer("honest", 0, w.honest())
	giveBack := disktest.Fill(t, disk, 4<<20)
	if _, err := Fetch(t.Context(), w.request()); !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "5.2 MB are needed, 4.") {
		t.Errorf("error is %v", err)
	}
	if n := w.asked["honest"].Load(); n != 0 {
		t.Errorf("a peer was asked %d times although there is no room", n)
	}
	w.mustHoldNothing()
	giveBack()
	w.leave(w.bytes[:3<<20])
	disktest.Fill(t, disk, 3<<20)
	if got := w.fetchBeside(w.request()); got != 1<<20 {
		t.Errorf("%d bytes were fetched, want the missing %d", got, 1<<20)
	}
}

// fetchBeside fetches and returns how many bytes came from peers.
func (w *world) fetchBeside(req FetchRequest) (n int64) {
	w.t.Helper()
	for _, bytes := range w.fetch(w.t.Context(), req) {
		n += bytes
	}
	return n
}

func TestStoreThatCannotBeWritten(t *testing.T) {
	for name, break_ := range map[string]func(*world, string){
		"read-only": func(w *world, disk string) { disktest.Remount(w.t, disk, unix.MS_RDONLY) },
		"gone":      func(w *world, _ string) { must(w.t, os.RemoveAll(w.dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			disk := disktest.Small(t, 4<<10)
			w := newWorld(t, 1000)
			w.onDisk(disk)
			w.peer("honest", 0, w.honest())
			break_(w, disk)
			_, err := Fetch(t.Context(), w.request())
			if err == nil || errors.Is(err, ErrNoPeer) || !strings.Contains(err.Error(), "check that "+w.dir+" exists and can be written") {
				t.Errorf("error is %v", err)
			}
			if n := w.asked["honest"].Load(); n != 0 {
				t.Errorf("a peer was asked %d times", n)
			}
		})
	}
}
