package fleet

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"
)

func turnsOf(n int) (turns []FleetUpdateHost) {
	for i := range n {
		turns = append(turns, FleetUpdateHost{HostID: fmt.Sprint("h", i), Name: fmt.Sprint("host-", i), Position: i + 1, Status: TurnPending})
	}
	return turns
}

// Turns are as a slice of them would be, in JSON, too, and one that has changed changes
// nobody else's.
func TestTurnsAreAsASlice(t *testing.T) {
	for _, n := range []int{0, 1, turnsPerPart - 1, turnsPerPart, turnsPerPart + 1, 3 * turnsPerPart} {
		want := turnsOf(n)
		got := NewTurns(want...)
		mustBe := func(got Turns, want []FleetUpdateHost) {
			t.Helper()
			if got.Len() != len(want) {
				t.Fatalf("%d turns, want %d", got.Len(), len(want))
			}
			for i, turn := range got.All() {
				if turn != want[i] || got.At(i) != want[i] || got.of(turn.HostID) != i {
					t.Fatalf("of %d turn %d is %+v", n, i, turn)
				}
			}
			asSlice, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			asTurns, err := json.Marshal(got)
			if err != nil || string(asTurns) != string(asSlice) {
				t.Fatalf("of %d: %s, %v", n, asTurns, err)
			}
			var again Turns
			if err := json.Unmarshal(asTurns, &again); err != nil || !slices.EqualFunc(again.parts, got.parts, slices.Equal) {
				t.Fatalf("of %d: read again they are %+v, %v", n, again, err)
			}
		}
		mustBe(got, want)
		if got.of("nobody") >= 0 {
			t.Error("nobody has a turn")
		}
		for _, i := range []int{0, n / 2, n - 1} {
			if i < 0 || n == 0 {
				continue
			}
			changed := slices.Clone(want)
			changed[i].Status = TurnFailed
			mustBe(got.with(i, changed[i]), changed)
			mustBe(got, want)
		}
	}
}

// BenchmarkTurn is an entry that changes a turn, in fleets of two sizes.
func BenchmarkTurn(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New()
			txn := s.db.Txn(true)
			must(txn.Insert(tableFleetUpdates, fleetUpdateRow{CreatedIndex: 1, FleetUpdate: FleetUpdate{
				ID: "f", TargetVersion: "2.0.0", Status: FleetRunning, StartedAt: time.Unix(0, 0), Hosts: NewTurns(turnsOf(n)...),
			}}))
			txn.Commit()
			b.ReportAllocs()
			index := uint64(1)
			for i := 0; b.Loop(); i++ {
				if i%n == 0 && i > 0 {
					b.Fatal("all turns are skipped")
				}
				index++
				e, err := NewEntry(fmt.Sprint("e", index), "coordinator", time.Unix(0, 0), FleetUpdateHostSkipped{ID: "f", HostID: fmt.Sprint("h", n-1-i), Reason: "already at target"})
				if err != nil {
					b.Fatal(err)
				}
				if r := s.Apply(index, e); r.Err != nil {
					b.Fatal(r.Err)
				}
			}
		})
	}
}
