package fleet

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func caBegun(n uint64) CARotationBegun {
	return CARotationBegun{Number: n, Cert: fmt.Appendf(nil, "cert %d", n), Key: fmt.Appendf(nil, "key %d", n), Succession: fmt.Appendf(nil, "succession %d", n)}
}

func caRetired(n uint64) CARetired {
	return CARetired{Number: n, Retirement: fmt.Appendf(nil, "retirement %d", n), GossipKey: ringKey(byte(200 + n))}
}

// rotated changes the gossip keys of a segment from beginning to end.
func (s *script) rotated(segment string, key byte) {
	s.tb.Helper()
	s.must(GossipRotationBegun{Keys: []SegmentKey{segmentKey(segment, key)}})
	for range 2 {
		r, _ := s.state.View().GossipRing(segment)
		s.must(GossipRotationAdvanced{Segment: segment, Revision: r.Revision})
	}
}

func (s *script) trusts() (out string) {
	c, _ := s.state.View().Cluster()
	for _, ca := range c.TrustedCAs() {
		out += fmt.Sprintf("%d:%s ", ca.Number, ca.Cert)
	}
	return out
}

// The CA is changed in three steps, in order. The old one is retired once the gossip
// keys of all segments are others than its state had.
func TestCARotation(t *testing.T) {
	s := newScript(t)
	s.refused(CodeConflict, caBegun(1)) // no cluster
	first := cluster()
	first.Cluster.CACert, first.Cluster.CAKey, first.Cluster.GossipKeys = []byte("cert 0"), []byte("key 0"), [][]byte{ringKey(100)}
	s.must(first)
	is := func(trusts, signs, root string) {
		t.Helper()
		c, _ := s.state.View().Cluster()
		if got := s.trusts(); got != trusts || string(c.CAKey) != signs || string(c.GossipRoot()) != root {
			t.Errorf("trusted are %q, %q signs, gossip keys are of %q; want %q, %q, %q", got, c.CAKey, c.GossipRoot(), trusts, signs, root)
		}
	}
	s.refused(CodeNotRunning, CASwitched{Number: 1})
	s.refused(CodeConflict, caBegun(2))
	s.refused(CodeBadRequest, CARotationBegun{Number: 1, Cert: []byte("c"), Key: []byte("k")})
	s.refused(CodeBadRequest, CARotationBegun{Number: 1, Cert: []byte("c"), Key: bytes.Repeat([]byte("k"), MaxCABytes+1), Succession: []byte("s")})
	is("0:cert 0 ", "key 0", "key 0")

	s.must(caBegun(1))
	is("0:cert 0 1:cert 1 ", "key 0", "key 0")
	s.refused(CodeRotationRunning, caBegun(2))
	s.refused(CodeConflict, caRetired(1))
	s.must(joinToken("old"))
	s.must(GossipRotationBegun{Keys: []SegmentKey{segmentKey("default", 1)}})
	s.refused(CodeRotationRunning, CASwitched{Number: 1}) // begun while the old CA signed
	for range 2 {
		r, _ := s.state.View().GossipRing("default")
		s.must(GossipRotationAdvanced{Segment: "default", Revision: r.Revision})
	}
	s.refused(CodeBadRequest, CASwitched{Number: 1, EpochStatement: []byte("of no epoch")})
	s.must(CASwitched{Number: 1, Forced: true, Missing: []string{"agent-9"}})
	is("0:cert 0 1:cert 1 ", "key 1", "key 0")
	if e := s.state.View().Audit(0, 1)[0]; !strings.Contains(e.Detail, "without waiting for 1 hosts: agent-9") {
		t.Errorf("the audit says %q", e.Detail)
	}
	s.refused(CodeConflict, CASwitched{Number: 1})
	s.refused(CodeConflict, caRetired(1)) // the gossip keys are those of before
	s.must(joinToken("new"))

	s.must(GossipRotationBegun{Keys: []SegmentKey{segmentKey("default", 2)}})
	s.refused(CodeConflict, caRetired(1)) // and are so still
	r, _ := s.state.View().GossipRing("default")
	s.must(GossipRotationAdvanced{Segment: "default", Revision: r.Revision})
	r, _ = s.state.View().GossipRing("default")
	s.must(GossipRotationAdvanced{Segment: "default", Revision: r.Revision})
	bad := caRetired(1)
	bad.GossipKey = nil
	s.refused(CodeBadRequest, bad)
	s.must(caRetired(1))
	is("1:cert 1 ", "key 1", "key 1")
	c, _ := s.state.View().Cluster()
	if string(c.CARetirement) != "retirement 1" || len(c.CASuccessions) != 1 || c.CARotation.Key != nil || c.GossipKeys[0][0] != 201 || c.CARotation.CompletedAt == nil {
		t.Errorf("at the end the cluster is %+v", c)
	}
	var snapshot bytes.Buffer
	if err := s.state.Snapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(snapshot.String(), "a2V5IDA=") { // "key 0" in base64
		t.Error("the old CA's key is in the state still")
	}

	// A token that names the retired CA is refused; one of the new CA is good.
	s.refused(CodeTokenInvalid, HostEnrolled{TokenHash: "old", Host: host(7)})
	s.must(HostEnrolled{TokenHash: "new", Host: host(7)})
	if !strings.Contains(s.apply(HostEnrolled{TokenHash: "old", Host: host(8)}).Message, "before the cluster's CA was changed") {
		t.Error("a token of the retired CA is refused with another reason")
	}

	restored := New()
	if err := s.state.Snapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	snapshot.Reset()
	if err := s.state.Snapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	if err := restored.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	want, _ := s.state.View().Cluster()
	if got, _ := restored.View().Cluster(); !reflect.DeepEqual(got, want) {
		t.Error("a snapshot gives another cluster")
	}
}

// What a snapshot leaves out because it is empty was nil before.
func TestEachStepOfACAChangeSurvivesASnapshot(t *testing.T) {
	s := fleetOf(t, 1)
	step := func(c Change) {
		t.Helper()
		s.must(c)
		if row := differs(s.state, reopened(t, s.state)); row != "" {
			t.Errorf("after %s: %s", c.Kind(), row)
		}
	}
	step(caBegun(1))
	step(CASwitched{Number: 1}) // no segment's gossip keys were ever changed
	s.rotated("default", 1)
	step(caRetired(1))
	step(caBegun(2))
	step(CASwitched{Number: 2})
}

// While an update runs, its host may have to go on by an order of the old CA.
func TestCAIsNotRetiredAmidAJob(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(caBegun(1), CASwitched{Number: 1})
	s.rotated("default", 1)
	s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"}, JobDispatched{JobID: "j", HostID: "h1"})
	s.refused(CodeConflict, caRetired(1))
	s.must(JobFinished{JobID: "j", Status: JobSucceeded}, caRetired(1))
}

// A restored cluster's epoch is stated by the new CA, and old changes give way.
func TestCARotationsAndEpochs(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(epochBegun(3, "s1"), caBegun(1))
	s.refused(CodeBadRequest, CASwitched{Number: 1})
	s.must(CASwitched{Number: 1, EpochStatement: []byte("by the new CA")})
	if c, _ := s.state.View().Cluster(); string(c.EpochStatement) != "by the new CA" || c.Epoch != 3 {
		t.Errorf("the cluster is %+v", c)
	}
	s.rotated("default", 1)
	s.must(caRetired(1))
	for n := uint64(2); n < MaxCASuccessions+4; n++ {
		s.must(caBegun(n), CASwitched{Number: n, EpochStatement: []byte("e")})
		s.rotated("default", byte(n))
		s.must(caRetired(n))
	}
	if c, _ := s.state.View().Cluster(); len(c.CASuccessions) != MaxCASuccessions || string(c.CASuccessions[0]) != "succession 4" {
		t.Errorf("%d successions are kept, from %q", len(c.CASuccessions), c.CASuccessions[0])
	}
}
