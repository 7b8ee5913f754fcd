package nodekit

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"moult/mesh/identity"
)

const (
	// MaxRenewalRetry is how long a host waits at most until it asks again.
	MaxRenewalRetry = 10 * time.Minute // between attempts; less for short lifetimes
	// RefreshSpread spreads the questions of hosts that started together.
	RefreshSpread     = 30 * time.Second // within which a host that started asks what has changed
	segmentKeyTimeout = 30 * time.Second // for the keys of segments that a host is started in anew
	maxRenewalAsked   = 8                // hosts asked in one attempt
)

// Renewal keeps a host's certificate valid, and what it knows of the cluster's
// servers and of its segments fresh.
type Renewal struct {
	Current *identity.Current
	Ask     func(ctx context.Context) (identity.Enrolment, error)
	Renewed func(identity.Credentials) // tells those that cannot ask current each time
	Now     <-chan struct{}            // asks at once, or within followSpread; may be nil
	Logger  *slog.Logger
}

// Run renews until ctx ends.
func (r *Renewal) Run(ctx context.Context) {
	wait := r.untilDue()
	if issued, _, err := r.Current.Get().Validity(); err == nil && time.Since(issued) > RefreshSpread {
		wait = min(wait, rand.N(RefreshSpread)) // it was off: much may have changed
	}
	for r.pause(ctx, wait) {
		wait = r.once(ctx)
	}
}

// pause waits until it is time to ask, and returns false when ctx ends.
func (r *Renewal) pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	case <-r.Now:
		return Sleep(ctx, min(wait, rand.N(followSpread)))
	}
}

// once asks once, and returns when to ask again.
func (r *Renewal) once(ctx context.Context) time.Duration {
	e, err := r.Ask(ctx)
	var creds identity.Credentials
	if err == nil {
		creds, err = r.Current.Take(e)
	}
	if err != nil {
		if ctx.Err() == nil {
			_, ends, _ := r.Current.Get().Validity() // Load has parsed it
			r.Logger.Warn("the certificate is not renewed yet", "ends", ends, "error", err)
		}
		return r.retryAfter()
	}
	r.Renewed(creds)
	_, ends, _ := creds.Validity()
	r.Logger.Info("certificate renewed", "ends", ends)
	return r.untilDue()
}

func (r *Renewal) untilDue() time.Duration {
	issued, ends, err := r.Current.Get().Validity()
	if err != nil || r.Current.Get().NotYetValid(time.Now()) { // others refuse it until then
		return 0
	}
	lifetime := ends.Sub(issued)
	due := issued.Add(lifetime * 2 / 3).Add(-rand.N(lifetime/12 + 1))
	return max(time.Until(due), 0)
}

func (r *Renewal) retryAfter() time.Duration {
	issued, ends, err := r.Current.Get().Validity()
	if err != nil {
		return MaxRenewalRetry
	}
	most := min(max(ends.Sub(issued)/24, time.Second), MaxRenewalRetry)
	return most/2 + rand.N(most/2)
}

// Sleep waits, and returns false when ctx ends first.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// RenewAt asks one server or relay after the other. Where a server shows a certificate
// of a CA that this host does not know, it asks how the CA was changed, and follows
// what is proven: it was off meanwhile.
func RenewAt(ctx context.Context, addrs []string, creds identity.Credentials, req identity.RenewRequest) (identity.Enrolment, error) {
	var errs []error
	for _, addr := range addrs[:min(len(addrs), maxRenewalAsked)] {
		e, err := identity.Renew(ctx, addr, creds, req)
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) && creds.Trusted != nil {
			if err = followAt(ctx, addr, creds); err == nil {
				e, err = identity.Renew(ctx, addr, creds, req)
			}
		}
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

// followAt asks a server or relay how the CA was changed.
func followAt(ctx context.Context, addr string, creds identity.Credentials) error {
	chain, err := identity.FetchChain(ctx, addr)
	if err != nil {
		return err
	}
	news, err := creds.Trusted.Follow(creds.Cluster, chain)
	if err == nil && !news {
		err = fmt.Errorf("%s shows a certificate of a CA that this host does not trust, and nothing that leads to it: it is of another cluster, or the CA was changed too often while this host was off; then join it again with a new token", addr)
	}
	return err
}

// AwaitSegmentKeys gets the keys of segments that this host is started in for the
// first time, by its certificate. Later starts have them on the disk, and need
// nobody.
func AwaitSegmentKeys(ctx context.Context, o NodeOptions, current *identity.Current, ask func(ctx context.Context) (identity.Enrolment, error), logger *slog.Logger) error {
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
		if err != nil && (errors.As(err, &refused) && refused.Status < 500 || !Sleep(ctx, RetryInterval)) {
			return fmt.Errorf("--also-segment: no server gave the gossip keys of %s: %w; see that a server or a relay can be reached by --join, or start without the flag", strings.Join(missing, ", "), err)
		}
		if err != nil {
			logger.Warn("waiting for the gossip keys of further segments", "segments", missing, "error", err)
		}
	}
}

// agentAsk is how an agent's supervisor asks, before there is a mesh.
func agentAsk(o NodeOptions, current *identity.Current) func(ctx context.Context) (identity.Enrolment, error) {
	return func(ctx context.Context) (identity.Enrolment, error) {
		creds := current.Get()
		return RenewAt(ctx, slices.Concat(o.Join, creds.Servers), creds, identity.RenewRequest{Also: o.SegmentAddrs()})
	}
}
