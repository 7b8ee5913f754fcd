package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"moult/mesh/identity"
)

// Times of a certificate's renewal. It is renewed at two thirds of its lifetime,
// or up to a twelfth of it earlier, so that hosts that joined together don't ask
// together.
const (
	defaultCertificateLifetime = 365 * 24 * time.Hour
	minCertificateLifetime     = 10 * time.Second
	maxCertificateLifetime     = 10 * 365 * 24 * time.Hour
	maxRenewalRetry            = 10 * time.Minute // between attempts; less for short lifetimes
	refreshSpread              = 30 * time.Second // within which a host that started asks what has changed
	segmentKeyTimeout          = 30 * time.Second // for the keys of segments that a host is started in anew
	maxRenewalAsked            = 8                // hosts asked in one attempt
)

// renewal keeps a host's certificate valid, and what it knows of the cluster's
// servers and of its segments fresh.
type renewal struct {
	current *identity.Current
	ask     func(ctx context.Context) (identity.Enrolment, error)
	renewed func(identity.Credentials) // tells those that cannot ask current each time
	now     <-chan struct{}            // asks at once, or within followSpread; may be nil
	logger  *slog.Logger
}

// run renews until ctx ends.
func (r *renewal) run(ctx context.Context) {
	wait := r.untilDue()
	if issued, _, err := r.current.Get().Validity(); err == nil && time.Since(issued) > refreshSpread {
		wait = min(wait, rand.N(refreshSpread)) // it was off: much may have changed
	}
	for r.pause(ctx, wait) {
		wait = r.once(ctx)
	}
}

// pause waits until it is time to ask, and returns false when ctx ends.
func (r *renewal) pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	case <-r.now:
		return sleep(ctx, min(wait, rand.N(followSpread)))
	}
}

// once asks once, and returns when to ask again.
func (r *renewal) once(ctx context.Context) time.Duration {
	e, err := r.ask(ctx)
	var creds identity.Credentials
	if err == nil {
		creds, err = r.current.Take(e)
	}
	if err != nil {
		if ctx.Err() == nil {
			_, ends, _ := r.current.Get().Validity() // Load has parsed it
			r.logger.Warn("the certificate is not renewed yet", "ends", ends, "error", err)
		}
		return r.retryAfter()
	}
	r.renewed(creds)
	_, ends, _ := creds.Validity()
	r.logger.Info("certificate renewed", "ends", ends)
	return r.untilDue()
}

func (r *renewal) untilDue() time.Duration {
	issued, ends, err := r.current.Get().Validity()
	if err != nil || r.current.Get().NotYetValid(time.Now()) { // others refuse it until then
		return 0
	}
	lifetime := ends.Sub(issued)
	due := issued.Add(lifetime * 2 / 3).Add(-rand.N(lifetime/12 + 1))
	return max(time.Until(due), 0)
}

func (r *renewal) retryAfter() time.Duration {
	issued, ends, err := r.current.Get().Validity()
	if err != nil {
		return maxRenewalRetry
	}
	most := min(max(ends.Sub(issued)/24, time.Second), maxRenewalRetry)
	return most/2 + rand.N(most/2)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// renewAt asks one server or relay after the other.
func renewAt(ctx context.Context, addrs []string, creds identity.Credentials, req identity.RenewRequest) (identity.Enrolment, error) {
	var errs []error
	for _, addr := range addrs[:min(len(addrs), maxRenewalAsked)] {
		e, err := identity.Renew(ctx, addr, creds, req)
		if err == nil {
			return e, nil
		}
		errs = append(errs, err)
		var refused *identity.CodedError
		if errors.As(err, &refused) && refused.Status < 500 || ctx.Err() != nil {
			break // another server would say the same
		}
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("no server and no relay is known; give one with --join"))
	}
	return identity.Enrolment{}, errors.Join(errs...)
}

// awaitSegmentKeys gets the keys of segments that this host is started in for the
// first time, by its certificate. Later starts have them on the disk, and need
// nobody.
func awaitSegmentKeys(ctx context.Context, o nodeOptions, current *identity.Current, ask func(ctx context.Context) (identity.Enrolment, error), logger *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, segmentKeyTimeout)
	defer cancel()
	for {
		missing := o.missingKeys(current.Get())
		if len(missing) == 0 {
			return nil
		}
		e, err := ask(ctx)
		if err == nil {
			if _, err = current.Take(e); err == nil && len(o.missingKeys(current.Get())) == len(missing) {
				err = errors.New("the server gives no keys of segments; update the servers first")
			}
		}
		var refused *identity.CodedError
		if err != nil && (errors.As(err, &refused) && refused.Status < 500 || !sleep(ctx, retryInterval)) {
			return fmt.Errorf("--also-segment: no server gave the gossip keys of %s: %w; see that a server or a relay can be reached by --join, or start without the flag", strings.Join(missing, ", "), err)
		}
		if err != nil {
			logger.Warn("waiting for the gossip keys of further segments", "segments", missing, "error", err)
		}
	}
}

// agentAsk is how an agent's supervisor asks, before there is a mesh.
func agentAsk(o nodeOptions, current *identity.Current) func(ctx context.Context) (identity.Enrolment, error) {
	return func(ctx context.Context) (identity.Enrolment, error) {
		creds := current.Get()
		return renewAt(ctx, slices.Concat(o.join, creds.Servers), creds, identity.RenewRequest{Also: o.segmentAddrs()})
	}
}
