package consensus

import (
	"testing"
	"time"

	"moult/consensus/fleet"
)

// During an upgrade a newer leader may append what this version does not know,
// and a broken one anything. No server may stop over it, now or when it replays
// its log, and all hold the same state afterwards.
func TestUnknownAndBrokenEntriesStopNobody(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.Snapshots = Snapshots{Interval: 50 * time.Millisecond, Threshold: 12, Trailing: 4}
	})
	leader := c.AwaitLeader()
	last := uint64(0)
	for _, data := range []string{
		"", "\x00garbage", "null", "[]", `"text"`, `{"type":`,
		`{"type":"host_promoted","version":1,"id":"n1","actor":"user:ann","at":"2026-01-01T00:00:00Z","body":{"host_id":"h1"}}`,
		`{"type":"user_created","version":2,"id":"n2","actor":"user:ann","at":"2026-01-01T00:00:00Z","body":{"users":[]}}`,
		`{"type":"user_created","version":1,"id":"n3","actor":"user:ann","at":"9999-12-31T23:59:59-24:00","body":{}}`,
		`{"type":"user_created","version":1,"id":"n4","actor":"user:ann","at":"2026-01-01T00:00:00Z","body":"text"}`,
		`{"type":"user_created","version":1,"id":"n5","actor":"","at":"2026-01-01T00:00:00Z","body":{}}`,
	} {
		f := leader.raft.Apply([]byte(data), time.Second)
		if err := f.Error(); err != nil {
			t.Fatalf("append %q: %v", data, err)
		}
		if r, ok := f.Response().(fleet.Result); !ok || r.Err == nil || r.Index != f.Index() {
			t.Errorf("%q was not refused: %+v", data, f.Response())
		}
		last = f.Index()
	}
	mustPropose(t, leader, user("ann")) // time goes on as if nothing had been
	if at := leader.View().Audit(0, 1)[0].At; time.Since(at) > time.Minute || time.Since(at) < 0 {
		t.Errorf("the next entry is of %s", at)
	}
	c.AwaitEqual()
	if n := leader.View().Unknown(); n == 0 {
		t.Error("unknown kinds are not counted")
	}
	for _, s := range c.all() { // one after the other, each from its disk
		c.Stop(s)
		again := c.open(s.id, s.addr)
		awaitSoon(t, "the server is back", func() bool { return again.Ready() == nil })
		if got := again.AppliedIndex(); got < last {
			t.Errorf("%s is at %d of %d", s.id, got, last)
		}
	}
	c.AwaitEqual()
}
