package nodekit

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"moult/mesh"
	"moult/mesh/identity"
)

// Times of a host that follows.
const (
	// followSpread is within which hosts that hear of new keys ask for them.
	followSpread = 2 * time.Second
	// AloneAfter and lostAfter are how long a host waits, when it sees nobody at all
	// or no server, until it asks a server by itself: its gossip keys may be old ones.
	AloneAfter  = 5 * time.Second
	LostAfter   = time.Minute
	MaxLostWait = 10 * time.Minute // between such questions
	watchTick   = time.Second
	// strangersTick is how often a host looks whether it was shown a certificate of a
	// CA that it does not know.
	strangersTick = 5 * time.Second
	// unknownCAEvery is how often strangers' certificates make a host ask at most.
	unknownCAEvery = 30 * time.Second
)

// TrustFollower is what a host does with the deny-list and with new gossip keys.
// Its methods are safe for concurrent use.
type TrustFollower struct {
	current *identity.Current
	node    *mesh.Node
	cut     func()        // ends the connections of hosts that were removed
	Renew   chan struct{} // capacity 1: has the certificate renewed, and keys with it
	logger  *slog.Logger
}

// NewTrustFollower follows for the host whose credentials are current.
func NewTrustFollower(current *identity.Current, node *mesh.Node, cut func(), logger *slog.Logger) *TrustFollower {
	f := &TrustFollower{current: current, node: node, cut: cut, Renew: make(chan struct{}, 1), logger: logger}
	f.useKeys(current.Get()) // they may have changed between the pools' start and now
	return f
}

// Listen takes what servers send.
func (f *TrustFollower) Listen() {
	f.node.Handle(TopicDenied, func(from identity.Identity, payload []byte) {
		if from.Role == identity.RoleServer {
			f.TakeDenied(payload)
			f.say(context.Background(), from.HostID)
		}
	})
	f.node.Handle(TopicCAs, func(from identity.Identity, payload []byte) {
		var n CasNotice
		if from.Role != identity.RoleServer || json.Unmarshal(payload, &n) != nil {
			return
		}
		f.TakeCAs(n)
		f.say(context.Background(), from.HostID)
	})
	f.node.Handle(TopicRings, func(from identity.Identity, payload []byte) {
		var n RingsNotice
		if from.Role != identity.RoleServer || json.Unmarshal(payload, &n) != nil || len(n.Rings) > mesh.MaxSegments {
			return
		}
		f.TakeRings(n.Rings)
		f.say(context.Background(), from.HostID)
	})
}

// TakeDenied follows a deny-list, unless it is an older one than it follows.
func (f *TrustFollower) TakeDenied(raw []byte) {
	creds := f.current.Get()
	news, err := creds.Denials.Take(creds.Verifier(), raw)
	if err != nil {
		f.logger.Warn("the deny-list is not followed", "error", err)
	}
	if !news {
		return
	}
	epoch, number := creds.Denials.Followed()
	f.logger.Info("deny-list followed", "epoch", epoch, "number", number)
	f.cut()
}

// TakeCAs follows a change of the CA as far as it is proven, and asks for a
// certificate by the CA that signs now.
func (f *TrustFollower) TakeCAs(n CasNotice) {
	creds := f.current.Get()
	news, err := creds.Trusted.Follow(creds.Cluster, n.Chain)
	if err != nil {
		f.logger.Error("the change of the CA is not followed", "error", err)
		return
	}
	trusted := creds.Trusted.Hashes()
	if news {
		f.logger.Info("the CAs that are trusted have changed", "sha256", trusted)
		f.cut()
	}
	if signer, err := identity.CAHash(creds.CAPEM); err == nil && signer != n.Signer && slices.Contains(trusted, n.Signer) {
		f.askSoon()
	}
}

// TakeRings asks for new gossip keys, where the host has not those that it should.
func (f *TrustFollower) TakeRings(rings map[string]uint64) {
	if FollowedBy(f.current.Get()).Lacks(rings) {
		f.askSoon()
	}
}

func (f *TrustFollower) askSoon() {
	select {
	case f.Renew <- struct{}{}:
	default:
	}
}

// Renewed takes what a renewal gave into use, and says so to the servers.
func (f *TrustFollower) Renewed(creds identity.Credentials) {
	if err := f.node.SetCertificate(creds.CertDER()); err != nil {
		f.logger.Error("use the renewed certificate", "error", err)
	}
	f.useKeys(creds)
	f.cut() // of whom a deny-list names that came along
	ctx, cancel := context.WithTimeout(context.Background(), TrustTimeout)
	defer cancel()
	var sends sync.WaitGroup
	for _, s := range f.node.Roster().Servers() {
		if s.HostID != creds.HostID {
			sends.Go(func() { f.say(ctx, s.HostID) })
		}
	}
	sends.Wait()
}

func (f *TrustFollower) useKeys(creds identity.Credentials) {
	for segment := range FollowedBy(creds).Rings {
		s, _ := creds.In(segment)
		if err := f.node.SetKeys(segment, s.GossipKeys); err != nil {
			f.logger.Debug("gossip keys not used", "segment", segment, "error", err) // not started in it
		}
	}
}

// say tells a server what this host follows, and returns whether it was sent.
func (f *TrustFollower) say(ctx context.Context, server string) bool {
	payload, err := json.Marshal(FollowedBy(f.current.Get()))
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, TrustTimeout)
	defer cancel()
	if err := f.node.Send(ctx, server, TopicTrustFollowed, payload); err != nil {
		f.logger.Debug("say what is followed", "server", server, "error", err)
		return false
	}
	return true
}

// watch tells each server that it sees for the first time what this host follows,
// so that one that was off hears at once what it missed. And it has the host ask a
// server for its keys when gossip shows it nobody, or no server: it was off while
// they changed, or the cluster was restored with others. While all is as it was it
// sleeps.
func (f *TrustFollower) watch(ctx context.Context) {
	w, told := LostWatch{Since: time.Now()}, map[string]bool{}
	for Sleep(ctx, watchTick) {
		changed := f.node.Roster().Changed()
		servers := f.node.Roster().Servers()
		toldAll := true
		for _, s := range servers {
			if !told[s.HostID] {
				told[s.HostID] = f.say(ctx, s.HostID)
				toldAll = toldAll && told[s.HostID]
			}
		}
		if w.Due(f.node.LivePeers(), len(servers), time.Now()) {
			f.logger.Info("gossip shows no server; asking one whether the keys have changed")
			f.askSoon()
		}
		if len(servers) > 0 && toldAll {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}
}

// WatchCAs has the host ask a server for the CAs when it meets certificates of one that
// it does not know: it was off, or could not be reached, while the CA was changed.
func (f *TrustFollower) WatchCAs(ctx context.Context) {
	var asked time.Time
	for Sleep(ctx, strangersTick) {
		if f.current.Get().Trusted.MetUnknown() && time.Since(asked) >= unknownCAEvery {
			f.logger.Info("a certificate of an unknown CA was shown; asking a server whether the CA has changed")
			asked = time.Now()
			f.askSoon()
		}
	}
}

// LostWatch decides when a host that is lost asks.
type LostWatch struct {
	Since time.Time     // when it was lost, or asked last
	wait  time.Duration // until it asks again; 0: it has not yet
}

// Due tells whether a host that sees so many asks now.
func (w *LostWatch) Due(peers, servers int, now time.Time) bool {
	if servers > 0 {
		w.Since, w.wait = now, 0
		return false
	}
	wait := w.wait
	if wait == 0 {
		wait = LostAfter
		if peers == 0 {
			wait = AloneAfter
		}
	}
	if now.Sub(w.Since) < wait {
		return false
	}
	w.Since = now
	w.wait = min(2*wait, MaxLostWait)
	w.wait = w.wait*3/4 + rand.N(w.wait/4)
	return true
}
