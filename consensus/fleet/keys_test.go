package fleet

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
)

// keysChanged is the number-th change of the release keys.
func keysChanged(number uint64) ReleaseKeysChanged {
	return ReleaseKeysChanged{
		Number: number, Threshold: 1, Keys: []string{fmt.Sprintf("RWkey%d", number)},
		Signed: KeyStatement{Statement: fmt.Appendf(nil, "statement %d", number), Signature: []byte("signature")},
	}
}

// Statements follow one on the other, and none is ever dropped: a host that was
// off for all of them needs each.
func TestReleaseKeysChangeInOrder(t *testing.T) {
	s := newScript(t)
	s.refused(CodeConflict, keysChanged(1)) // no cluster
	s.must(cluster())
	before := s.state.View()
	s.refused(CodeConflict, keysChanged(2))
	s.must(keysChanged(1))
	s.refused(CodeConflict, keysChanged(1))
	other := keysChanged(1)
	other.Signed.Statement = []byte("another statement 1")
	s.refused(CodeConflict, other)
	s.must(keysChanged(2))
	c, _ := s.state.View().Cluster()
	if !reflect.DeepEqual(c.ReleaseKeys, []string{"RWkey2"}) || c.KeysNumber != 2 || c.ReleaseThreshold != 1 ||
		!reflect.DeepEqual(c.KeyStatements, []KeyStatement{keysChanged(1).Signed, keysChanged(2).Signed}) {
		t.Errorf("the cluster is %+v", c)
	}
	if old, _ := before.Cluster(); old.KeysNumber != 0 || len(old.KeyStatements) != 0 {
		t.Errorf("an older view shows %+v", old)
	}
	for n := uint64(3); n <= MaxKeyStatements; n++ {
		s.must(keysChanged(n))
	}
	s.refused(CodeLimitReached, keysChanged(MaxKeyStatements+1))

	var snapshot bytes.Buffer
	if err := s.state.View().Snapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	restored := New()
	if err := restored.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	want, _ := s.state.View().Cluster()
	if got, _ := restored.View().Cluster(); !reflect.DeepEqual(got, want) {
		t.Error("a snapshot gives other keys")
	}
}
