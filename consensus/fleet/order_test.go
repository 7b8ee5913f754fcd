package fleet

import (
	"fmt"
	"testing"
)

// Go walks a map in another order each time. A refusal names one of several
// faults, and all servers must name the same one: it is part of their state.
func TestRefusalsDoNotDependOnTheOrderOfMaps(t *testing.T) {
	labels := map[string]string{}
	for i := range 8 {
		labels[fmt.Sprintf("bad key %d", i)] = "x"
	}
	crowded := host(1)
	crowded.Labels = labels
	e, err := NewEntry("many-faults", "user:ann", epoch, HostEnrolled{TokenHash: "t", Host: crowded})
	if err != nil {
		t.Fatal(err)
	}
	malformed := Entry{Type: UserCreated{}.Kind(), Version: 1, ID: "malformed", Actor: "user:ann", At: epoch}
	malformed.Body = []byte(`{"user":{"created_at":"yesterday"},"USER":{"created_at":"tomorrow"},"User":{"created_at":"now"},"uSER":{"created_at":"?"}}`)
	first := map[string]string{}
	for range 50 {
		s := newScript(t)
		s.must(cluster(), joinToken("t"))
		for i, e := range []Entry{e, malformed} {
			r := s.state.Apply(uint64(10+i), e)
			if r.Err == nil {
				t.Fatalf("%s was accepted", e.ID)
			}
			if first[e.ID] == "" {
				first[e.ID] = r.Err.Message + s.state.Hash()
			}
			if again := r.Err.Message + s.state.Hash(); again != first[e.ID] {
				t.Fatalf("%s\nand another time\n%s", first[e.ID], again)
			}
		}
	}
}
