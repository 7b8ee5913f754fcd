package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"moult/mesh"
	"moult/mesh/identity"
)

// Times of a host that follows.
const (
	// followSpread is within which hosts that hear of new keys ask for them.
	followSpread = 2 * time.Second
	// aloneAfter and lostAfter are how long a host waits, when it sees nobody at all
	// or no server, until it asks a server by itself: its gossip keys may be old ones.
	aloneAfter  = 5 * time.Second
	lostAfter   = time.Minute
	maxLostWait = 10 * time.Minute // between such questions
	watchTick   = time.Second
)

// trustFollower is what a host does with the deny-list and with new gossip keys.
// Its methods are safe for concurrent use.
type trustFollower struct {
	current *identity.Current
	node    *mesh.Node
	cut     func()        // ends the connections of hosts that were removed
	renew   chan struct{} // capacity 1: has the certificate renewed, and keys with it
	logger  *slog.Logger
}

func newTrustFollower(current *identity.Current, node *mesh.Node, cut func(), logger *slog.Logger) *trustFollower {
	f := &trustFollower{current: current, node: node, cut: cut, renew: make(chan struct{}, 1), logger: logger}
	f.useKeys(current.Get()) // they may have changed between the pools' start and now
	return f
}

// listen takes what servers send.
func (f *trustFollower) listen() {
	f.node.Handle(topicDenied, func(from identity.Identity, payload []byte) {
		if from.Role == identity.RoleServer {
			f.takeDenied(payload)
			f.say(context.Background(), from.HostID)
		}
	})
	f.node.Handle(topicRings, func(from identity.Identity, payload []byte) {
		var n ringsNotice
		if from.Role != identity.RoleServer || json.Unmarshal(payload, &n) != nil || len(n.Rings) > mesh.MaxSegments {
			return
		}
		f.takeRings(n.Rings)
		f.say(context.Background(), from.HostID)
	})
}

// takeDenied follows a deny-list, unless it is an older one than it follows.
func (f *trustFollower) takeDenied(raw []byte) {
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

// takeRings asks for new gossip keys, where the host has not those that it should.
func (f *trustFollower) takeRings(rings map[string]uint64) {
	if followedBy(f.current.Get()).lacks(rings) {
		f.askSoon()
	}
}

func (f *trustFollower) askSoon() {
	select {
	case f.renew <- struct{}{}:
	default:
	}
}

// renewed takes what a renewal gave into use, and says so to the servers.
func (f *trustFollower) renewed(creds identity.Credentials) {
	if err := f.node.SetCertificate(creds.CertDER()); err != nil {
		f.logger.Error("use the renewed certificate", "error", err)
	}
	f.useKeys(creds)
	f.cut() // of whom a deny-list names that came along
	ctx, cancel := context.WithTimeout(context.Background(), trustTimeout)
	defer cancel()
	var sends sync.WaitGroup
	for _, s := range f.node.Roster().Servers() {
		if s.HostID != creds.HostID {
			sends.Go(func() { f.say(ctx, s.HostID) })
		}
	}
	sends.Wait()
}

func (f *trustFollower) useKeys(creds identity.Credentials) {
	for segment := range followedBy(creds).Rings {
		s, _ := creds.In(segment)
		if err := f.node.SetKeys(segment, s.GossipKeys); err != nil {
			f.logger.Debug("gossip keys not used", "segment", segment, "error", err) // not started in it
		}
	}
}

// say tells a server what this host follows, and returns whether it was sent.
func (f *trustFollower) say(ctx context.Context, server string) bool {
	payload, err := json.Marshal(followedBy(f.current.Get()))
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, trustTimeout)
	defer cancel()
	if err := f.node.Send(ctx, server, topicTrustFollowed, payload); err != nil {
		f.logger.Debug("say what is followed", "server", server, "error", err)
		return false
	}
	return true
}

// watch tells each server that it sees for the first time what this host follows,
// so that one that was off hears at once what it missed. And it has the host ask a
// server for its keys when gossip shows it nobody, or no server: it was off while
// they changed, or the cluster was restored with others.
func (f *trustFollower) watch(ctx context.Context) {
	w, told := lostWatch{since: time.Now()}, map[string]bool{}
	for sleep(ctx, watchTick) {
		servers := f.node.Roster().Servers()
		for _, s := range servers {
			if !told[s.HostID] {
				told[s.HostID] = f.say(ctx, s.HostID)
			}
		}
		if w.due(f.node.LivePeers(), len(servers), time.Now()) {
			f.logger.Info("gossip shows no server; asking one whether the keys have changed")
			f.askSoon()
		}
	}
}

// lostWatch decides when a host that is lost asks.
type lostWatch struct {
	since time.Time     // when it was lost, or asked last
	wait  time.Duration // until it asks again; 0: it has not yet
}

func (w *lostWatch) due(peers, servers int, now time.Time) bool {
	if servers > 0 {
		w.since, w.wait = now, 0
		return false
	}
	wait := w.wait
	if wait == 0 {
		wait = lostAfter
		if peers == 0 {
			wait = aloneAfter
		}
	}
	if now.Sub(w.since) < wait {
		return false
	}
	w.since = now
	w.wait = min(2*wait, maxLostWait)
	w.wait = w.wait*3/4 + rand.N(w.wait/4)
	return true
}
