package consensus

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// What Raft complains about one server is written at once, then once a minute with how
// often it was not; what it says of another server, or of none, is not held back by it.
func TestComplaintsOfRaftAreNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := raftLogger{out: slog.New(slog.NewTextHandler(&out, nil)), repeats: &repeats{}}.Named("raft").With("server", "s1")
		took := func() []string {
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			out.Reset()
			return lines
		}
		for i := range 4 * 60 {
			l.Error("failed to heartbeat to", "peer", raft.ServerAddress("10.0.0.2:7947"), "error", fmt.Sprint("try ", i))
			if i == 60 {
				l.Error("failed to heartbeat to", "peer", raft.ServerAddress("10.0.0.3:7947"), "error", "refused")
				l.Error("failed to appendEntries to", "peer", raft.ServerAddress("10.0.0.2:7947"), "error", "refused")
				l.Warn("heartbeat timeout reached, starting election")
				l.Warn("heartbeat timeout reached, starting election")
			}
			if i == 61 {
				if lines := took(); len(lines) != 5 || !strings.Contains(lines[0], "try 0") || strings.Contains(strings.Join(lines, ""), "repeated") {
					t.Errorf("in the first minute is written %q", lines)
				}
			}
			time.Sleep(500 * time.Millisecond)
		}
		if lines := took(); len(lines) != 1 || !strings.Contains(lines[0], "try 120") || !strings.Contains(lines[0], "repeated=119") {
			t.Errorf("in the second minute is written %q", lines)
		}
	})
}

// Many servers cost no memory; old complaints make room.
func TestComplaintsThatAreRememberedAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r repeats
		about := func(server int) bool {
			_, write := r.see("failed to heartbeat to", []any{"peer", server})
			return write
		}
		for i := range 3 * maxRepeats {
			if !about(i) {
				t.Fatalf("the first complaint about server %d is not written", i)
			}
		}
		if len(r.last) != maxRepeats || about(0) || !about(maxRepeats) {
			t.Errorf("of %d complaints %d are remembered, and not the first ones", 3*maxRepeats, len(r.last))
		}
		time.Sleep(repeatEvery)
		if !about(maxRepeats) || about(maxRepeats) {
			t.Error("what is old makes no room")
		}
	})
}
