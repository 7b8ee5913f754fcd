package webui

import "net/http"

// ServerState is a digest of one server's replicated state.
type ServerState struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Index  uint64 `json:"index"`  // of the last log entry in it
	SHA256 string `json:"sha256"` // of all of it, 64 hex digits
	Error  string `json:"error"`  // why there is none; else empty
}

// serverStates compares the servers' states. They are equal on all servers at
// the same index, or something is badly wrong.
func (u *ui) serverStates(w http.ResponseWriter, r *http.Request) error {
	states := u.Servers.States(r.Context())
	return ok(w, map[string]any{"servers": list(states), "verdict": compareStates(states)})
}

// The verdicts on the servers' states.
const (
	statesEqual     = "equal"     // all that answer, and they are as many as there are
	statesDiffer    = "differ"    // two with the same index have different digests
	statesUndecided = "undecided" // one does not answer, or they have applied different entries
)

func compareStates(states []ServerState) string {
	verdict := statesEqual
	at := map[uint64]string{}
	for _, s := range states {
		switch other, known := at[s.Index]; {
		case s.Error != "":
			verdict = statesUndecided
			continue
		case known && other != s.SHA256:
			return statesDiffer
		}
		at[s.Index] = s.SHA256
	}
	if len(at) != 1 {
		return statesUndecided
	}
	return verdict
}
