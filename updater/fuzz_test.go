//go:build linux

package updater

import (
	"os"
	"testing"
	"time"

	"moult/updater/release"
)

// Whatever trust.json holds: a release below what it says is refused, and it
// never says less after a commit than before.
func FuzzTrust(f *testing.F) {
	dir := f.TempDir()
	if err := raiseTrust(dir, installed{Version: "1", Number: 7, Digest: "d"}, 3); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(trustPath(dir))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","body":{}}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(trustPath(dir), text, 0o600); err != nil {
			t.Fatal(err)
		}
		before, err := loadTrust(dir)
		if err != nil {
			if raiseTrust(dir, installed{Number: 1}, 1) == nil {
				t.Fatal("a damaged file was written over")
			}
			return
		}
		if before.Floor > 0 && before.admit(offer{Number: before.Floor - 1, Rollback: true}, 0, time.Now()) == nil {
			t.Fatalf("below the floor: %+v", before)
		}
		if before.Keys != nil {
			// Keys that nobody could have pinned verify nothing, rather than anything.
			if _, err := release.Verify(before.Keys.KeySet, []byte("{}"), nil); err == nil {
				t.Fatalf("%+v", before.Keys)
			}
		}
		if err := raiseTrust(dir, installed{Number: 1, Digest: "x"}, 1); err != nil {
			return // such as a time that cannot be written
		}
		after, err := loadTrust(dir)
		if err != nil || after.Highest < max(before.Highest, 1) || after.Floor < max(before.Floor, 1) {
			t.Fatalf("%+v became %+v, %v", before, after, err)
		}
	})
}
