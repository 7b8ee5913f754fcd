package fleet

import (
	"encoding/json"
	"iter"
	"slices"
)

// turnsPerPart is how many turns are copied when one of them changes.
const turnsPerPart = 128

// Turns are the turns of a fleet update's hosts, in order of position. A value never
// changes: what changes a turn makes another value, which shares with it all but a part
// of turnsPerPart turns and what leads there. So what an entry costs that changes one
// turn of ten thousand is far from what they take. In JSON it is an array.
type Turns struct {
	parts [][]FleetUpdateHost // all but the last of turnsPerPart, which is never empty
}

// NewTurns returns these turns.
func NewTurns(turns ...FleetUpdateHost) Turns {
	return Turns{slices.Collect(slices.Chunk(slices.Clone(turns), turnsPerPart))}
}

// Len returns how many there are.
func (t Turns) Len() int {
	last := len(t.parts) - 1
	if last < 0 {
		return 0
	}
	return last*turnsPerPart + len(t.parts[last])
}

// At returns the turn at a place, from 0. It panics where there is none.
func (t Turns) At(i int) FleetUpdateHost { return t.parts[i/turnsPerPart][i%turnsPerPart] }

// All returns all turns with their places.
func (t Turns) All() iter.Seq2[int, FleetUpdateHost] {
	return func(yield func(int, FleetUpdateHost) bool) {
		for p, part := range t.parts {
			for i := range part {
				if !yield(p*turnsPerPart+i, part[i]) {
					return
				}
			}
		}
	}
}

// of returns the place of a host's turn, -1 when it has none.
func (t Turns) of(hostID string) int {
	for p, part := range t.parts {
		for i := range part {
			if part[i].HostID == hostID {
				return p*turnsPerPart + i
			}
		}
	}
	return -1
}

// with returns the turns with another one at a place.
func (t Turns) with(i int, turn FleetUpdateHost) Turns {
	parts := slices.Clone(t.parts)
	part := slices.Clone(parts[i/turnsPerPart])
	part[i%turnsPerPart] = turn
	parts[i/turnsPerPart] = part
	return Turns{parts}
}

// MarshalJSON writes an array; null for no turns at all, as for a nil slice.
func (t Turns) MarshalJSON() ([]byte, error) { return json.Marshal(slices.Concat(t.parts...)) }

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *Turns) UnmarshalJSON(b []byte) error {
	var turns []FleetUpdateHost
	if err := json.Unmarshal(b, &turns); err != nil {
		return err
	}
	*t = NewTurns(turns...)
	return nil
}
