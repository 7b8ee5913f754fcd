package mesh

import (
	"fmt"
	"testing"
	"time"
)

// lie has a relay say what it likes of a host, in the host's last record, as often
// as it likes. It is in the host's segment by name only: nobody there reaches it.
func lie(t *testing.T, liar *Node, segment string, rec SignedRecord, alive bool, every, lasts time.Duration) {
	t.Helper()
	for end := time.Now().Add(lasts); time.Now().Before(end) && t.Context().Err() == nil; time.Sleep(every) {
		liar.tell(report{
			observer: liar.cfg.Identity.HostID, boot: liar.cfg.Boot, version: liar.reportSeq.Add(1),
			segment: segment, alive: alive, ip: []byte{10, 0, 0, 1}, record: rec,
		}, liar.pools[1])
	}
}

// liarsWorld is a server, an honest relay and a lying one, and an agent behind.
func liarsWorld(t *testing.T) (s, honest, liar, a *Node) {
	t.Helper()
	c := newCluster(t)
	s = c.node("s1", "left")
	honest = c.node("r1", "left", "right")
	a = c.node("a1", "right")
	c.net.Cut("r9", "a1")
	c.net.Cut("r9", "r1")
	liar = c.node("r9", "left", "right")
	awaitLiveness(t, 20*time.Second, "a1", Online, s)
	awaitLiveness(t, 20*time.Second, "r9", Online, s)
	time.Sleep(time.Minute)
	return s, honest, liar, a
}

func TestLyingRelayCannotKeepAHostOnline(t *testing.T) {
	for name, honestLives := range map[string]bool{"alone": false, "against another's word": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, honest, liar, a := liarsWorld(t)
				rec := a.Record()
				must(t, a.Close())
				limit := proofLives*DefaultTiming.Renew + 2*tick
				if honestLives {
					limit = contestLives*DefaultTiming.Renew + 12*time.Second // which memberlist takes
				} else {
					must(t, honest.Close())
				}
				start := time.Now()
				go lie(t, liar, "right", rec, true, time.Second, 5*time.Minute)
				awaitLiveness(t, limit, "a1", Offline, s)
				if m, _ := s.Roster().Member("a1"); m.Seq != rec.Seq || m.Version != rec.Version {
					t.Errorf("after %v the record is %+v", time.Since(start), m.Record)
				}
				for time.Since(start) < 4*time.Minute { // and it stays so, whatever the relay says
					if m, _ := s.Roster().Member("a1"); m.Liveness == Online {
						t.Fatalf("online again after %v", time.Since(start))
					}
					time.Sleep(time.Second)
				}
				time.Sleep(2 * time.Minute)
			})
		})
	}
}

func TestLyingRelayCannotMakeAHostFail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, _, liar, a := liarsWorld(t)
		go lie(t, liar, "right", a.Record(), false, time.Second, 5*time.Minute)
		for range 5 * 60 {
			if m, _ := s.Roster().Member("a1"); m.Liveness != Online {
				t.Fatalf("a1 is %s though the other relay sees it", m.Liveness)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(time.Second)
	})
}

func TestLyingRelayCannotChangeARecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, _, liar, a := liarsWorld(t)
		forged := a.Record().Record
		forged.Boot, forged.Seq, forged.Version = forged.Boot+1, 1, "6.6.6"
		before := s.Counters().UnverifiedRecords
		lie(t, liar, "right", signed(t, forged, liar.cfg.Key), true, time.Second, 5*time.Second)
		if m, _ := s.Roster().Member("a1"); m.Version == "6.6.6" || m.Liveness != Online {
			t.Errorf("the server believes %+v", m)
		}
		if s.Counters().UnverifiedRecords == before {
			t.Error("the forged record was not counted")
		}
	})
}

// A quiet host stays online for as long as its relay carries its renewals, and
// nobody is woken by them.
func TestRenewalsKeepAQuietHostOnline(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "left")
		c.node("r1", "left", "right")
		a := c.node("a1", "right")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		time.Sleep(time.Minute)
		quiet, first := s.Roster().Changed(), a.Record().Seq
		for range 5 * 60 {
			time.Sleep(time.Second)
			m, _ := s.Roster().Member("a1")
			if m.Liveness != Online || m.SeenVia != "r1" || time.Since(m.LastSeen) > DefaultTiming.freshSighting() {
				t.Fatalf("the far host is %s, through %q, seen %v ago", m.Liveness, m.SeenVia, time.Since(m.LastSeen))
			}
		}
		select {
		case <-quiet:
			t.Error("renewals wake who waits for changes")
		default:
		}
		m, _ := s.Roster().Member("a1")
		if renewed := a.Record().Seq - first; renewed < 15 || a.Record().Seq-m.Seq > 2 {
			t.Errorf("renewed %d times; the server is %d behind", renewed, a.Record().Seq-m.Seq)
		}
	})
}

// A host of a version that renews nothing is believed by its relay's word alone.
func TestHostThatDoesNotRenewIsSeenAllTheSame(t *testing.T) {
	r := newRoster("s1", []string{"left"}, DefaultTiming, recordVerifier{})
	now := time.Now()
	r.now = func() time.Time { return now }
	for i, renews := range []bool{false, true} {
		rec := agentRecord(fmt.Sprint("a", i), 1, 1)
		rec.Segments, rec.Renews = []string{"right"}, renews
		r.mu.Lock()
		h := r.host(SignedRecord{Record: rec})
		r.take(h, SignedRecord{Record: rec}, true)
		r.mu.Unlock()
		r.see(rec.HostID, sightingKey{"right", "r1"}, sighting{alive: true, version: 1})
	}
	now = now.Add(proofLives*DefaultTiming.Renew + time.Second)
	r.expire(hintLifetime)
	for host, want := range map[string]Liveness{"a0": Online, "a1": Offline} {
		if m, _ := r.Member(host); m.Liveness != want {
			t.Errorf("%s is %s, want %s", host, m.Liveness, want)
		}
	}
}

// Relays disagree about a host: the host's own word decides, and until it could
// have come, who called it alive before the other one saw it fail.
func TestRelaysThatDisagree(t *testing.T) {
	now := time.Now()
	r := newRoster("s1", []string{"left"}, DefaultTiming, recordVerifier{})
	r.now = func() time.Time { return now }
	rec := agentRecord("a1", 1, 1)
	rec.Segments, rec.Renews = []string{"right"}, true
	prove := func(seq uint64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		rec.Seq = seq
		r.take(r.host(SignedRecord{Record: rec}), SignedRecord{Record: rec}, true)
	}
	versions := map[string]uint64{}
	say := func(observer string, alive bool) {
		versions[observer]++
		r.see("a1", sightingKey{"right", observer}, sighting{alive: alive, version: versions[observer]})
	}
	after := func(d time.Duration, want Liveness) {
		t.Helper()
		now = now.Add(d)
		r.expire(hintLifetime)
		if m, _ := r.Member("a1"); m.Liveness != want {
			t.Errorf("after %v: %s, want %s", d, m.Liveness, want)
		}
	}
	prove(1)
	say("r2", true)
	after(time.Second, Online)
	say("r1", false)
	after(contestLives*DefaultTiming.Renew, Online) // r2 said so before
	say("r2", true)
	after(time.Second, Offline) // and the host had the time to prove it
	prove(2)
	after(0, Online)
	say("r2", false)
	after(0, Offline)
	now = now.Add(time.Second)
	say("r1", true) // it is nobody's word that began before r2 saw it fail
	now = now.Add(time.Second)
	say("r1", false)
	now = now.Add(time.Second)
	say("r2", true)
	after(0, Offline)
	prove(3)
	after(0, Online)
}

func TestRelaysIgnoreHints(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		relay, agent := c.node("r1", "left", "middle"), c.node("a1", "left")
		rec := agentRecord("s9", 1, 1)
		rec.Role, rec.Segments = "server", []string{"right"}
		w := writer{}
		report{observer: "r2", boot: 1, version: 1, segment: "right", alive: true, record: signed(t, rec, c.key("s9"))}.encode(&w)
		for _, n := range []*Node{relay, agent} {
			n.takeHint(w.b)
		}
		if _, known := agent.Roster().Member("s9"); !known {
			t.Error("an ordinary member does not take the hint")
		}
		if _, known := relay.Roster().Member("s9"); known {
			t.Error("the relay took the hint: it would not pass the signed report on")
		}
	})
}
