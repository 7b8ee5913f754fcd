package consensus

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"moult/consensus/fleet"
)

// An entry of the Raft log, as a newer, broken or rooted server may have put it
// there: no server stops over it, and all hold the same state afterwards.
func FuzzApply(f *testing.F) {
	entry := func(c fleet.Change) []byte {
		e, err := fleet.NewEntry("p1", "user:a", time.Unix(1_700_000_000, 0).UTC(), c)
		if err != nil {
			f.Fatal(err)
		}
		b, err := json.Marshal(e)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	first := entry(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1"}, Server: fleet.Host{ID: "s1", Name: "s1"},
		Admin: fleet.User{ID: "u1", Name: "admin", PasswordHash: "x"}, Token: fleet.APIToken{ID: "t1", Name: "t", Hash: "h"},
	})
	f.Add(first, []byte{})
	f.Add(entry(fleet.ReleaseKeysChanged{Number: 1, Threshold: 1, Keys: []string{"RW"}, Signed: fleet.KeyStatement{Statement: []byte("s"), Signature: []byte("s")}}), []byte{0, 0, 0, 0, 0, 0, 0, 3})
	f.Add([]byte(`{"type":"tomorrow","version":9,"id":"x","body":[]}`), []byte{0, 0, 0, 0, 0, 0, 0, 9})
	f.Add([]byte("\x00"), []byte("odd"))
	f.Fuzz(func(t *testing.T, data, extensions []byte) {
		apply := func() *fsm {
			m := newFSM()
			m.Apply(&raft.Log{Index: 1, Term: 3, Data: first})
			answer := m.Apply(&raft.Log{Index: 2, Term: 3, Data: data, Extensions: extensions})
			if v, passed := answer.(void); passed {
				answer = v.Result
			}
			if r, ok := answer.(fleet.Result); !ok || r.Index != 2 && r.Index != 1 {
				t.Fatalf("the result is %+v", r)
			}
			return m
		}
		a, b := apply(), apply()
		if a.state.Hash() != b.state.Hash() {
			t.Fatal("two servers differ")
		}
		var snapshot bytes.Buffer
		if err := a.state.Snapshot(&snapshot); err != nil {
			t.Fatal(err)
		}
		restored := newFSM()
		if err := restored.state.Restore(&snapshot); err != nil || restored.state.Hash() != a.state.Hash() {
			t.Fatalf("a snapshot gives another state: %v", err)
		}
		if index, _ := a.position(); index != 2 {
			t.Fatalf("applied up to %d", index)
		}
	})
}

// What another server forwards.
func FuzzForwarded(f *testing.F) {
	f.Add([]byte(`{"op":"propose","entry":{"type":"host_removed","version":1,"id":"p","actor":"a","body":{}}}`))
	f.Add([]byte(`{"op":"add_server","id":"s2","address":"x:1"}`))
	f.Add([]byte(`{"op":"index","entry":null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		if json.Unmarshal(b, &r) != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			return // a body that is not JSON in itself
		}
		var same request
		if err := json.Unmarshal(again, &same); err != nil || same.Op != r.Op || same.ID != r.ID || (same.Entry == nil) != (r.Entry == nil) {
			t.Fatalf("%s became %s, %v", b, again, err)
		}
	})
}
