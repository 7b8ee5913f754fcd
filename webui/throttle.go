package webui

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of signing in. A wrong password costs an attempt of the address it came
// from and of the user it was for; attempts come back over time. Nobody is locked
// out: who waits gets in.
const (
	loginBurst       = 10              // wrong passwords in a row
	loginRefill      = 6 * time.Second // until the next attempt
	maxThrottleKeys  = 10_000          // addresses and users that are kept track of
	maxConcurrentKDF = 2               // password hashes computed at a time: each takes 19 MiB and a core
)

// throttle counts failed logins. Safe for concurrent use.
type throttle struct {
	now func() time.Time
	kdf slots // waited for in awaitKDF

	mu       sync.Mutex
	limiters map[string]*rate.Limiter
	rest     *rate.Limiter // for all keys beyond maxThrottleKeys
}

func newThrottle(now func() time.Time) *throttle {
	return &throttle{now: now, kdf: make(slots, maxConcurrentKDF), limiters: map[string]*rate.Limiter{}, rest: newLoginLimiter()}
}

func newLoginLimiter() *rate.Limiter { return rate.NewLimiter(rate.Every(loginRefill), loginBurst) }

// attempt takes an attempt of each key before the password is looked at, so that
// concurrent guesses count too; refund gives them back when it was right. It
// returns false, and takes nothing, when any key has none left.
func (t *throttle) attempt(keys ...string) (refund func(), allowed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var taken []*rate.Reservation
	giveBack := func() {
		for _, r := range taken {
			r.CancelAt(now)
		}
	}
	for _, key := range keys {
		r := t.limiter(key, now).ReserveN(now, 1)
		taken = append(taken, r)
		if r.DelayFrom(now) > 0 {
			giveBack()
			return nil, false
		}
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, key := range keys {
			delete(t.limiters, key)
		}
	}, true
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
	if len(t.limiters) >= maxThrottleKeys {
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
