package consensus

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// repeatEvery is how often the same complaint about the same server is logged.
	repeatEvery = time.Minute
	// maxRepeats bounds how many complaints are told apart; beyond it all are written.
	maxRepeats = 256
)

// aboutServer are the names that Raft's log gives to the server that a line is about.
var aboutServer = []string{"peer", "server-id", "target"}

// repeats holds back complaints about a server that were made a moment ago.
type repeats struct {
	mu   sync.Mutex
	last map[string]*repeated // by message and server
}

type repeated struct {
	at   time.Time // when it was written
	held int       // how often it was not since then
}

// see tells whether a line is to be written now, and how many like it were held back.
// Lines about no server are always written.
func (r *repeats) see(msg string, args []any) (held int, write bool) {
	key := ""
	for i := 0; i+1 < len(args); i += 2 {
		if name, ok := args[i].(string); ok && slices.Contains(aboutServer, name) {
			key = fmt.Sprint(msg, " ", args[i+1])
		}
	}
	if key == "" {
		return 0, true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	line := r.last[key]
	if line != nil && now.Sub(line.at) < repeatEvery {
		line.held++
		return 0, false
	}
	if line != nil {
		held = line.held
		*line = repeated{at: now}
		return held, true
	}
	if len(r.last) >= maxRepeats {
		maps.DeleteFunc(r.last, func(_ string, l *repeated) bool { return now.Sub(l.at) >= repeatEvery })
	}
	if r.last == nil {
		r.last = map[string]*repeated{}
	}
	if len(r.last) < maxRepeats {
		r.last[key] = &repeated{at: now}
	}
	return 0, true
}
