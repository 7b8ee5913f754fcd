package webui

import (
	"context"
	"crypto/rand"
	"sync"

	"golang.org/x/time/rate"

	"moult/consensus/fleet"
)

// Limits of what attempts to sign in add to the log, whatever is sent.
const (
	tryEntriesPerSecond = 4
	tryEntriesBurst     = 20
)

// tries has attempts to sign in committed, which is where all servers together
// admit them or not. Those that come while an entry is under way go into the next
// one together, so a flood of guesses is a few entries a second. Safe for
// concurrent use; it starts no goroutines.
type tries struct {
	view    func() fleet.View
	propose func(context.Context, fleet.Change) error
	pace    *rate.Limiter
	turn    slots // held by the one request that sends for all

	mu      sync.Mutex
	waiting *tryBatch
}

// tryBatch is what goes into one entry.
type tryBatch struct {
	change fleet.LoginsTried
	sent   chan struct{} // closed when what follows is set
	view   fleet.View    // of the moment when the entry was applied
	alone  bool          // the leader does not know the change: this server counts by itself
	err    error
}

func newTries(view func() fleet.View, propose func(context.Context, fleet.Change) error) *tries {
	return &tries{view: view, propose: propose, pace: rate.NewLimiter(tryEntriesPerSecond, tryEntriesBurst), turn: make(slots, 1)}
}

// admit tells whether a password may be looked at, once the attempt is counted.
func (t *tries) admit(ctx context.Context, name, network string) (bool, error) {
	try := fleet.LoginTry{ID: rand.Text(), Name: name, Network: network}
	b, err := t.join(try)
	if err != nil {
		return false, err
	}
	select {
	case t.turn <- struct{}{}:
		t.send(context.WithoutCancel(ctx), b) // others wait for it too
		t.turn.give()
	case <-b.sent:
	}
	return b.err == nil && (b.alone || b.view.LoginAdmitted(try)), b.err
}

// join adds an attempt to what is sent next.
func (t *tries) join(try fleet.LoginTry) (*tryBatch, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting == nil {
		t.waiting = &tryBatch{sent: make(chan struct{})}
	}
	b := t.waiting
	if len(b.change.Tries) == fleet.MaxLoginTries {
		return nil, errManySignIn
	}
	b.change.Tries = append(b.change.Tries, try)
	return b, nil
}

var errManySignIn = refuse(codeBusy, "too many people sign in at this server; try again, or at another one")

// send has a batch committed, unless that was done while this request waited for
// its turn.
func (t *tries) send(ctx context.Context, b *tryBatch) {
	select {
	case <-b.sent:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	err := t.pace.Wait(ctx) // the batch grows meanwhile
	t.mu.Lock()
	t.waiting = nil // it is b: nobody else takes it without the turn
	t.mu.Unlock()
	if err != nil {
		err = errManySignIn
	} else {
		err = t.propose(ctx, b.change)
	}
	b.view, b.err = t.view(), err
	if codeOf(err) == fleet.CodeUnknownChange {
		b.alone, b.err = true, nil
	}
	close(b.sent)
}
