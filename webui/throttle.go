package webui

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"moult/consensus/fleet"
)

// Limits of trying passwords, on this server alone: the first line, before
// anything is committed. What all servers count together is in package fleet. Nobody is locked out: who waits gets in.
const (
	loginBurst       = 10              // wrong passwords in a row, of a name from a network or of a network
	loginRefill      = 6 * time.Second // until the next attempt
	maxThrottleKeys  = 10_000          // names and networks that are kept track of
	maxConcurrentKDF = 2               // password hashes computed at a time: each takes 19 MiB and a core
)

// throttle counts failed logins on this server. Safe for concurrent use.
type throttle struct {
	now func() time.Time
	kdf slots // waited for in awaitKDF

	mu       sync.Mutex
	limiters map[string]*rate.Limiter
	swept    time.Time     // when those that had recovered were dropped
	rest     *rate.Limiter // for all keys beyond maxThrottleKeys
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{
		now: now, kdf: make(slots, maxConcurrentKDF),
		limiters: map[string]*rate.Limiter{}, rest: newLoginLimiter(),
	}
}

func newLoginLimiter() *rate.Limiter { return rate.NewLimiter(rate.Every(loginRefill), loginBurst) }

// attempt is what one attempt cost.
type attempt struct {
	throttle *throttle
	at       time.Time
	pair     string
	taken    []*rate.Reservation
}

// begin takes an attempt of a name from a network before the password is looked
// at, so that concurrent guesses count too. When none is left, here or by what
// all servers have counted, it takes nothing and returns how long to wait.
func (t *throttle) begin(v fleet.View, name, network string) (attempt, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	a := attempt{throttle: t, at: now, pair: "pair " + name + " " + network}
	keys := []string{a.pair}
	if !v.KnownFrom(name, network) {
		keys = append(keys, "network "+network)
	}
	wait := v.LoginWait(name, network, now)
	for _, key := range keys {
		if wait > 0 {
			break
		}
		r := t.limiter(key, now).ReserveN(now, 1)
		a.taken = append(a.taken, r)
		wait = r.DelayFrom(now)
	}
	if wait > 0 {
		a.giveBack()
	}
	return a, wait
}

// giveBack undoes what was taken. The caller holds mu.
func (a attempt) giveBack() {
	for _, r := range a.taken {
		r.CancelAt(a.at)
	}
}

// refund gives back what the attempt cost on this server, and with it what the
// user's own attempts from there did: the password was right.
func (a attempt) refund() {
	t := a.throttle
	t.mu.Lock()
	defer t.mu.Unlock()
	a.giveBack()
	delete(t.limiters, a.pair)
}

// awaitKDF waits for a slot to compute a password hash in; give it back to t.kdf.
func (t *throttle) awaitKDF(ctx context.Context) error {
	select {
	case t.kdf <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *throttle) limiter(key string, now time.Time) *rate.Limiter {
	if l, ok := t.limiters[key]; ok {
		return l
	}
	if len(t.limiters) >= maxThrottleKeys && now.Sub(t.swept) >= loginRefill {
		t.swept = now // not at each attempt: to look at all takes a while
		for k, l := range t.limiters {
			if l.TokensAt(now) >= loginBurst {
				delete(t.limiters, k)
			}
		}
	}
	if len(t.limiters) >= maxThrottleKeys {
		return t.rest
	}
	l := newLoginLimiter()
	t.limiters[key] = l
	return l
}
