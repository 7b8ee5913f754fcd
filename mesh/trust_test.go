package mesh

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"moult/mesh/identity"
)

func signed(t *testing.T, r Record, key ed25519.PrivateKey) SignedRecord {
	t.Helper()
	s, err := r.Sign(testCluster, key)
	must(t, err)
	return s
}

func agentRecord(host string, boot, seq uint64) Record {
	r := smallRecord()
	r.HostID, r.Boot, r.Seq = host, boot, seq
	return r
}

func TestOfferedRecordsMustVerifyAndRise(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "default")
		key := c.key("a1")
		must(t, s.Offer(signed(t, agentRecord("a1", 5, 3), key).Raw))
		for name, tc := range map[string]struct {
			rec  SignedRecord
			want error
		}{
			"older sequence":  {signed(t, agentRecord("a1", 5, 2), key), ErrStale},
			"older boot":      {signed(t, agentRecord("a1", 4, 9), key), ErrStale},
			"another's key":   {signed(t, agentRecord("a1", 6, 1), c.key("a2")), ErrUnverified},
			"not enrolled":    {signed(t, agentRecord("a9", 1, 1), key), ErrUnverified},
			"the same again":  {signed(t, agentRecord("a1", 5, 3), key), nil},
			"same, but other": {signed(t, func() Record { r := agentRecord("a1", 5, 3); r.Version = "9"; return r }(), key), ErrStale},
			"truncated":       {SignedRecord{Raw: signed(t, agentRecord("a1", 7, 1), key).Raw[1:]}, ErrMalformed},
		} {
			if err := s.Offer(tc.rec.Raw); !errors.Is(err, tc.want) || tc.want == nil && err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		m, _ := s.Roster().Member("a1")
		if m.Boot != 5 || m.Seq != 3 || m.Version != "" || !m.Verified {
			t.Errorf("roster holds %+v", m)
		}
		if _, known := s.Roster().Member("a9"); known {
			t.Error("a host that is not enrolled is in the roster")
		}
		if got := s.Counters(); got.StaleRecords != 3 || got.UnverifiedRecords != 2 || got.MalformedRecords != 1 {
			t.Errorf("counters %+v", got)
		}
		must(t, s.Offer(signed(t, agentRecord("a1", 6, 1), key).Raw))
	})
}

func TestOfferIsASignOfLifeForAWhile(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "default")
		raw := signed(t, agentRecord("a1", 5, 3), c.key("a1")).Raw
		must(t, s.Offer(raw))
		awaitLiveness(t, 0, "a1", Online, s)
		time.Sleep(DefaultTiming.Reach / 2)
		must(t, s.Offer(raw)) // a replay proves no life
		time.Sleep(DefaultTiming.Reach/2 + 2*time.Second)
		awaitLiveness(t, 0, "a1", Offline, s)
	})
}

func TestRoleMustMatchTheEnrolment(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		cfg := c.config("s1", "default")
		cfg.RoleOf = func(host string) (identity.Role, bool) { return identity.RoleAgent, host == "a1" }
		s := c.start(cfg)
		r := agentRecord("a1", 1, 1)
		r.Role = string(identity.RoleServer)
		if err := s.Offer(signed(t, r, c.key("a1")).Raw); !errors.Is(err, ErrUnverified) {
			t.Errorf("a record with a role of its own making: %v", err)
		}
		r.Role = string(identity.RoleAgent)
		must(t, s.Offer(signed(t, r, c.key("a1")).Raw))
	})
}

// forger is a memberlist that holds the gossip key but no host's key.
func (c *cluster) forger(name string, meta []byte) *memberlist.Memberlist {
	c.t.Helper()
	transport, err := c.net.Listen("forger", "10.0.0.9:0")
	must(c.t, err)
	mc := memberlist.DefaultLANConfig()
	mc.Name, mc.Transport, mc.EnableCompression = name, transport, false
	mc.Label = "moult/" + testCluster + "/default"
	mc.SecretKey = gossipKey('d')
	mc.Delegate = fixedMeta{meta}
	mc.LogOutput = discard{}
	list, err := memberlist.Create(mc)
	must(c.t, err)
	c.t.Cleanup(func() { list.Shutdown() })
	for _, n := range c.nodes {
		_, err := list.Join([]string{n.pools[0].ownAddr})
		must(c.t, err)
	}
	return list
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

type fixedMeta struct{ meta []byte }

func (f fixedMeta) NodeMeta(int) []byte               { return f.meta }
func (fixedMeta) NotifyMsg([]byte)                    {}
func (fixedMeta) GetBroadcasts(int, int) [][]byte     { return nil }
func (fixedMeta) LocalState(bool) []byte              { return nil }
func (fixedMeta) MergeRemoteState(buf []byte, _ bool) {}

func TestForgedRecordIsIgnored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "default")
		c.key("a1") // enrolled, not here
		must(t, s.Offer(signed(t, agentRecord("a1", 5, 1), c.key("a1")).Raw))
		_, mallory, err := ed25519.GenerateKey(nil)
		must(t, err)
		forged := agentRecord("a1", 9, 9)
		forged.Version = "evil"
		c.forger("a1", signed(t, forged, mallory).Raw)
		await(t, 10*time.Second, "the forged record is counted", func() bool { return s.Counters().UnverifiedRecords > 0 })
		time.Sleep(time.Minute)
		if m, _ := s.Roster().Member("a1"); m.Boot != 5 || m.Version == "evil" || m.Liveness != Offline || m.Addr != "" {
			t.Errorf("the roster took it: %+v", m)
		}
		if got := s.Counters().UnverifiedRecords; got != 1 {
			t.Errorf("one record, counted %d times", got)
		}
	})
}

// A genuine record of an earlier start, kept by somebody who has the gossip key,
// brings a host that is away neither back nor to another address.
func TestRecordOfAnEarlierStartIsNoSignOfLife(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s := c.node("s1", "default")
		old := signed(t, agentRecord("a1", 4, 7), c.key("a1"))
		must(t, s.Offer(signed(t, agentRecord("a1", 5, 1), c.key("a1")).Raw))
		c.forger("a1", old.Raw)
		await(t, 10*time.Second, "the old record is counted", func() bool { return s.Counters().StaleRecords > 0 })
		time.Sleep(time.Minute)
		if m, _ := s.Roster().Member("a1"); m.Boot != 5 || m.Liveness != Offline || m.Addr != "" {
			t.Errorf("the roster took it: %+v", m)
		}
	})
}

// Forged words about a host that is here: by a member under its name, and by
// messages. Nothing changes, and each is counted.
func TestForgedWordsAboutALivingHostChangeNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a := c.node("s1", "default"), c.node("a1", "default")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		a.Announce(PhaseFetching, "job-1")
		await(t, 5*time.Second, "the record", func() bool { m, _ := s.Roster().Member("a1"); return m.JobID == "job-1" })
		before, _ := s.Roster().Member("a1")
		changed := s.Roster().Changed()

		_, mallory, err := ed25519.GenerateKey(nil)
		must(t, err)
		forged := agentRecord("a1", 99, 1)
		forged.Version, forged.Phase, forged.JobID = "2.0.0", PhaseIdle, "job-1"
		byMallory := signed(t, forged, mallory)
		flipped := signed(t, forged, c.key("a1"))
		flipped.Raw[len(flipped.Raw)-1] ^= 1
		leaving := forged
		leaving.Leaving = true
		for i, raw := range [][]byte{byMallory.Raw, flipped.Raw, signed(t, leaving, mallory).Raw} {
			s.read(s.pools[0], append([]byte{kindRecord}, raw...))
			if got := s.Counters().UnverifiedRecords; got != uint64(i+1) {
				t.Errorf("record %d: %d counted", i, got)
			}
		}
		s.read(s.pools[0], append([]byte{kindRecord}, byMallory.Raw[:80]...))
		if got := s.Counters().MalformedRecords; got != 1 {
			t.Errorf("%d malformed records counted", got)
		}
		c.forger("a1", byMallory.Raw)
		time.Sleep(30 * time.Second)
		after, _ := s.Roster().Member("a1")
		before.LastSeen, after.LastSeen = time.Time{}, time.Time{}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		select {
		case <-changed:
			t.Error("watchers were woken")
		default:
		}
	})
}

func TestRecordOfAnotherHostIsKeptOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a := c.node("s1", "default"), c.node("a2", "default")
		awaitLiveness(t, 10*time.Second, "a2", Online, s)
		// A genuine record of a1, on a member that calls itself a3.
		c.forger("a3", signed(t, agentRecord("a1", 1, 1), c.key("a1")).Raw)
		c.forger("a4", []byte("no record"))
		time.Sleep(30 * time.Second)
		for _, n := range []*Node{s, a} {
			if n.Counters().MalformedRecords == 0 {
				t.Errorf("%s did not count what it kept out", n.cfg.Identity.HostID)
			}
			if peers := n.LivePeers(); peers != 1 {
				t.Errorf("%s has %d peers", n.cfg.Identity.HostID, peers)
			}
			for _, host := range []string{"a1", "a3", "a4"} {
				if m, known := n.Roster().Member(host); known {
					t.Errorf("%s knows %+v", n.cfg.Identity.HostID, m)
				}
			}
		}
	})
}

func TestEnrolmentThatArrivesLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		arriving, enrolled := false, false
		cfg := c.config("s1", "default")
		cfg.KeyOf = func(host string) (ed25519.PublicKey, bool) {
			c.mu.Lock()
			known := enrolled
			if arriving && host != "s1" { // right after this look
				arriving, enrolled = false, true
			}
			c.mu.Unlock()
			if !known && host != "s1" {
				return nil, false
			}
			return c.keyOf(host)
		}
		s := c.start(cfg)
		c.node("a1", "default")
		time.Sleep(20 * time.Second)
		if _, known := s.Roster().Member("a1"); known || s.LivePeers() != 1 {
			t.Fatal("the host is in the roster before it is enrolled, or not in the pool")
		}
		c.mu.Lock()
		arriving = true
		c.mu.Unlock()
		awaitLiveness(t, 3*time.Second, "a1", Online, s)
		c.mu.Lock()
		enrolled = false
		c.mu.Unlock()
		if err := c.nodes["a1"].Send(short(t), "s1", "report", nil); err != nil {
			t.Fatal(err)
		}
		await(t, time.Second, "a removed host's message is refused", func() bool { return s.Counters().UnverifiedMessages == 1 })
	})
}

func TestEnvelopesAreVerifiedAndNotReplayed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a := c.node("s1", "default"), c.node("a1", "default")
		in := collect(a, "order")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		good := s.envelope("a1", "order", []byte("go"))
		for range 3 {
			must(t, s.pools[0].send("a1", append([]byte{kindEnvelope}, good.raw...)))
		}
		await(t, time.Second, "replays counted", func() bool { return a.Counters().ReplayedMessages == 2 })
		if in.count("go") != 1 {
			t.Errorf("delivered %d times", in.count("go"))
		}
		rogue := c.key("a2")
		rogueCert := c.certificate(identity.Identity{Cluster: testCluster, HostID: "a2", Name: "a2", Role: identity.RoleAgent}, rogue)
		otherCA, err := identity.NewCA(testCluster, time.Now())
		must(t, err)
		own := c.ca
		c.ca = otherCA
		foreignCert := c.certificate(s.cfg.Identity, s.cfg.Key)
		c.ca = own
		base := envelope{from: "s1", to: "a1", topic: "order", boot: 1, seq: 1000, cert: s.cfg.CertDER, payload: []byte("evil")}
		forgeries := map[string]envelope{}
		forgeries["the server's certificate, another's key"] = base.seal(testCluster, rogue)
		e := base
		e.cert = rogueCert
		forgeries["another's certificate and key, the server's name"] = e.seal(testCluster, rogue)
		e = base
		e.cert = foreignCert
		forgeries["another CA"] = e.seal(testCluster, s.cfg.Key)
		forgeries["another cluster"] = base.seal("elsewhere", s.cfg.Key)
		e = base
		e.to = "a2"
		forgeries["meant for another"] = e.seal(testCluster, s.cfg.Key)
		e = base.seal(testCluster, s.cfg.Key)
		e.raw = []byte(strings.Replace(string(e.raw), "evil", "EVIL", 1))
		forgeries["payload altered"] = e
		refused := a.Counters().UnverifiedMessages
		for name, e := range forgeries {
			must(t, s.pools[0].send("a1", append([]byte{kindEnvelope}, e.raw...)))
			refused++
			await(t, time.Second, name+" is refused", func() bool { return a.Counters().UnverifiedMessages == refused })
		}
		if in.has("evil") || in.has("EVIL") {
			t.Error("a forged message was delivered")
		}
	})
}

func TestReplayWindow(t *testing.T) {
	g := newReplayGuard(maxSenders)
	for i, step := range []struct {
		boot, seq uint64
		fresh     bool
	}{
		{1, 5, true},
		{1, 5, false},
		{1, 3, true},
		{1, 3, false},
		{1, 6, true},
		{1, 6 + replayWindow - 1, true},
		{1, 6, false},
		{1, 7, true},
		{1, 5, false},
		{1, 10 * replayWindow, true},
		{1, 10*replayWindow - 1, true},
		{1, 10*replayWindow - 1, false},
		{2, 1, true},
		{1, 10*replayWindow + 1, false},
		{2, 1, false},
		{2, 0, true},
		{2, 300, true},
		{2, 1300, true},
		{2, 299, true},
		{2, 276, false},
		{2, 277, true},
		{2, 300, false},
	} {
		if got := g.fresh("a", step.boot, step.seq); got != step.fresh {
			t.Errorf("step %d (%d, %d): fresh is %t", i, step.boot, step.seq, got)
		}
	}
	if !g.fresh("b", 1, 5) {
		t.Error("senders share a window")
	}
}

// Only relays may tell of other segments.
func TestSightingsOfAnOrdinaryAgentAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a := c.node("s1", "default"), c.node("a1", "default")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		awaitLiveness(t, 10*time.Second, "s1", Online, a)
		ghost := agentRecord("a2", 1, 1)
		ghost.Segments = []string{"far"}
		var w writer
		report{observer: "a1", boot: 1, version: 1, segment: "far", alive: true, record: signed(t, ghost, c.key("a2"))}.encode(&w)
		must(t, a.Send(short(t), "s1", topicSightings, w.b))
		await(t, time.Second, "refusal", func() bool { return s.Counters().UnverifiedMessages == 1 })
		if _, known := s.Roster().Member("a2"); known {
			t.Error("the server believed it")
		}
		s.read(s.pools[0], append([]byte{kindSighting}, w.b...))
		if _, known := s.Roster().Member("a2"); known {
			t.Error("the server believed a gossiped hint")
		}
	})
}

// Invariant 19 in one story: whatever a holder of the gossip key, or an agent
// that has turned, gossips, a server's view of who is what, and of what runs
// where, stays as the hosts' own keys and the enrolment have it.
func TestGossipAloneChangesNoRoleAndNoRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t)
		s, a := c.node("s1", "default"), c.node("a1", "default")
		awaitLiveness(t, 10*time.Second, "a1", Online, s)
		awaitLiveness(t, 10*time.Second, "s1", Online, a)
		before, _ := s.Roster().Member("a1")
		turned := c.key("a2") // enrolled as an agent
		_, keyless, err := ed25519.GenerateKey(nil)
		must(t, err)
		claim := func(r Record, key ed25519.PrivateKey) []byte { return signed(t, r, key).Raw }
		asServer := agentRecord("a2", 1, 1)
		asServer.Role = string(identity.RoleServer)
		updated := agentRecord("a1", before.Boot+1, 1)
		updated.Version, updated.Phase, updated.JobID = "2.0.0", PhaseIdle, "job-1"
		gone := agentRecord("a1", before.Boot+1, 2)
		gone.Leaving = true
		lies := map[string][]byte{
			"an agent calls itself a server":     claim(asServer, turned),
			"an agent speaks for another":        claim(updated, turned),
			"no host's key, another's success":   claim(updated, keyless),
			"no host's key, another's goodbye":   claim(gone, keyless),
			"an old record, its sequence raised": func() []byte { r := bytes.Clone(a.Record().Raw); r[2+1+2+8+7]++; return r }(),
		}
		for name, raw := range lies {
			refused := s.Counters().UnverifiedRecords
			if err := s.Offer(raw); !errors.Is(err, ErrUnverified) {
				t.Errorf("%s, as a report: %v", name, err)
			}
			must(t, a.pools[0].send("s1", append([]byte{kindRecord}, raw...)))
			await(t, time.Second, name+" is refused both ways", func() bool { return s.Counters().UnverifiedRecords == refused+2 })
		}
		after, _ := s.Roster().Member("a1")
		if after.Boot != before.Boot || after.Seq != before.Seq || after.Version != "1.0.0" || after.JobID != "" || after.Liveness != Online {
			t.Errorf("the server's view of a1 became %+v", after)
		}
		if _, known := s.Roster().Member("a2"); known {
			t.Error("the lie about a2 is in the roster")
		}
		if servers := s.Roster().Servers(); len(servers) != 1 {
			t.Errorf("servers %+v", servers)
		}
	})
}

func TestKeysAndRolesAreEnrolledTogether(t *testing.T) {
	c := newCluster(t)
	for _, spoil := range []func(*Config){func(cfg *Config) { cfg.RoleOf = nil }, func(cfg *Config) { cfg.KeyOf = nil }} {
		cfg := c.config("s1", "default")
		spoil(&cfg)
		if _, err := Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "go together") {
			t.Errorf("started: %v", err)
		}
	}
}
