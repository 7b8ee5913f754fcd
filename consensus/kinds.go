package consensus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"moult/consensus/fleet"
)

// kindsLive is how long a server's answer is taken for true without asking again:
// servers are replaced by newer ones, one by one, while they take in proposals.
const kindsLive = 10 * time.Second

// kinds remembers which kinds of changes the other servers know. An older server
// would pass over an entry of a kind it does not know, and its state would differ
// until it is updated: so the leader does not append one.
type kinds struct {
	ask func(ctx context.Context, serverID, addr string) ([]string, error)

	mu     sync.Mutex
	known  map[string][]string  // by server, as it last said
	asked  map[string]time.Time // by server, whether it answered or not
	asking map[string]bool
}

func newKinds(ask func(ctx context.Context, serverID, addr string) ([]string, error)) *kinds {
	return &kinds{ask: ask, known: map[string][]string{}, asked: map[string]time.Time{}, asking: map[string]bool{}}
}

// of returns what a server last said that it knows, nil when it never did. Only a
// server that was never asked is waited for; the others are asked under background.
func (k *kinds) of(ctx, background context.Context, s ServerStatus) []string {
	k.mu.Lock()
	at, before := k.asked[s.ID]
	due := (!before || time.Since(at) > kindsLive) && !k.asking[s.ID]
	if due {
		k.asking[s.ID] = true
	}
	known := k.known[s.ID]
	k.mu.Unlock()
	switch {
	case due && before:
		go k.learn(background, s)
	case due:
		known = k.learn(ctx, s)
	}
	return known
}

func (k *kinds) learn(ctx context.Context, s ServerStatus) []string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answer, err := k.ask(ctx, s.ID, s.Address)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asking[s.ID], k.asked[s.ID] = false, time.Now()
	if err == nil {
		k.known[s.ID] = answer
	}
	return k.known[s.ID]
}

// tooNew refuses a change of a kind, or with a feature, that another server says it does not know. A
// server that is down and was not heard of by this leader holds nothing up.
func (n *Node) tooNew(ctx context.Context, kind string) *fleet.Error {
	if n.kinds.ask == nil || slices.Contains(fleet.FirstKinds(), kind) {
		return nil
	}
	for _, s := range n.Servers() {
		if s.ID == n.cfg.ServerID {
			continue
		}
		if known := n.kinds.of(ctx, n.ctx, s); known != nil && !slices.Contains(known, kind) {
			name := s.ID
			if h, ok := n.State().View().Host(s.ID); ok {
				name = h.Name
			}
			return &fleet.Error{
				Code:    fleet.CodeUnknownChange,
				Message: fmt.Sprintf("server %s runs an older moult that does not know %q; update all servers before this is used", name, kind),
			}
		}
	}
	return nil
}
