package fleet

import (
	"fmt"
	"slices"
	"strings"
)

// GroupMember is what is seen of a server that holds the log.
type GroupMember struct {
	ID, Name string
	Voter    bool
	Healthy  bool // it answers, has a leader and is caught up with it
}

// HoldsUpRestart says why a server must not be restarted now: without it the
// voters that are healthy would be no majority. It returns "" when it may be. A
// group of one or two voters has no majority without one of them; there all the
// others have to be healthy. The planner's reasons and the pages say the same.
func HoldsUpRestart(group []GroupMember, id, name string) string {
	voters, have, votes := 0, 0, false
	var missing []string
	for _, m := range group {
		switch {
		case !m.Voter:
			continue
		case m.ID == id:
			votes = true
		case m.Healthy:
			have++
		default:
			missing = append(missing, m.Name)
		}
		voters++
	}
	if voters == 0 {
		return "who the servers are is not known yet"
	}
	need := voters/2 + 1
	if votes && voters <= 2 {
		need = voters - 1
	}
	if have >= need {
		return ""
	}
	why := fmt.Sprintf("%s does not restart yet: besides it %d of %d voters are healthy, and %d are needed", name, have, voters, need)
	if len(missing) > 0 {
		slices.Sort(missing)
		why += "; bring back " + strings.Join(missing, ", ")
	}
	return why
}
