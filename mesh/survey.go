package mesh

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"moult/mesh/identity"
)

// The topics of a survey's own messages.
const (
	topicPing = "mesh/ping"
	topicPong = "mesh/pong"
)

// Limits of a survey.
const (
	surveyPings   = 8               // members of each pool that are pinged, and ordinary neighbours that are named
	surveyTimeout = 5 * time.Second // for one answer
)

// Survey is what a node reaches, and how.
type Survey struct {
	Pools []PoolSurvey `json:"pools"`
	// Ways lead to the servers that the node knows, by host id.
	Ways []Way `json:"ways"`
	// Neighbours share a segment with the node, are online, and matter to it:
	// its servers, its relays, and a few others, drawn by chance.
	Neighbours []Neighbour `json:"neighbours"`
	Counters   Counters    `json:"counters"`
}

// PoolSurvey is one segment as the node sees it.
type PoolSurvey struct {
	Segment string       `json:"segment"`
	Address string       `json:"address"` // own gossip address, as others dial it
	Alive   int          `json:"alive"`   // other members that memberlist holds for alive
	Gone    int          `json:"gone"`    // members that left or failed
	Pings   []PacketPing `json:"pings"`   // some of the members alive, asked by UDP
}

// PacketPing is one member asked by UDP. memberlist falls back to TCP, so a
// member may be alive whom no packet reaches, and be slow to learn.
type PacketPing struct {
	HostID    string        `json:"host_id"`
	Address   string        `json:"address"`
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"`
	Error     string        `json:"error,omitempty"`
}

// Neighbour is a host that this one could reach without anybody's help.
type Neighbour struct {
	HostID   string `json:"host_id"`
	Role     string `json:"role"`
	Relay    bool   `json:"relay"`
	NodePort string `json:"node_port"`
}

// Way is how messages get to a server and back.
type Way struct {
	HostID    string        `json:"host_id"`
	Name      string        `json:"name,omitempty"`      // from its certificate, when it answered
	NodePort  string        `json:"node_port,omitempty"` // as seen by who saw it
	Segments  []string      `json:"segments"`
	Liveness  string        `json:"liveness"`
	Direct    bool          `json:"direct"`           // a segment is shared and memberlist holds it for alive
	Relays    []string      `json:"relays,omitempty"` // else: relays to go through, nearest first, by host id
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"`
	Skew      time.Duration `json:"skew_ns,omitempty"` // its clock less this host's
	Error     string        `json:"error,omitempty"`
}

// ping is asked, and answered, with the same nonce.
type ping struct {
	Nonce string    `json:"nonce"`
	At    time.Time `json:"at"` // by the sender's clock

	from identity.Identity // as the certificate says
}

// pings holds the pings that wait for an answer.
type pings struct {
	mu      sync.Mutex
	waiting map[string]chan ping
}

func (n *Node) answerPings() {
	n.handlers.handle(topicPing, func(from identity.Identity, payload []byte) {
		var p ping
		if json.Unmarshal(payload, &p) != nil {
			n.counters.malformedMessage.Add(1)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), surveyTimeout)
		defer cancel()
		answer, err := json.Marshal(ping{Nonce: p.Nonce, At: time.Now()})
		if err == nil {
			err = n.Send(ctx, from.HostID, topicPong, answer)
		}
		if err != nil {
			n.logger.Debug("ping not answered", "host", from.HostID, "error", err)
		}
	})
	n.handlers.handle(topicPong, func(from identity.Identity, payload []byte) {
		var p ping
		if json.Unmarshal(payload, &p) != nil {
			n.counters.malformedMessage.Add(1)
			return
		}
		n.pings.mu.Lock()
		ch, ok := n.pings.waiting[from.HostID+p.Nonce]
		delete(n.pings.waiting, from.HostID+p.Nonce)
		n.pings.mu.Unlock()
		if ok {
			p.from = from
			ch <- p // it has room for the one
		}
	})
}

// Survey finds out what this node reaches: it pings some members of each pool by
// UDP, and every server it knows by a message there and back. It takes as long
// as the slowest answer, at most about ten seconds, or until ctx ends.
func (n *Node) Survey(ctx context.Context) Survey {
	s := Survey{Pools: make([]PoolSurvey, len(n.pools)), Ways: []Way{}, Neighbours: n.neighbours(), Counters: n.Counters()}
	var asked sync.WaitGroup
	for i, p := range n.pools {
		asked.Go(func() { s.Pools[i] = p.survey() })
	}
	for _, m := range n.roster.Members() {
		if m.Role == string(identity.RoleServer) && m.HostID != n.cfg.Identity.HostID {
			s.Ways = append(s.Ways, Way{
				HostID: m.HostID, NodePort: m.Addr, Segments: m.Segments, Liveness: string(m.Liveness),
			})
		}
	}
	for i := range s.Ways {
		asked.Go(func() { n.tryWay(ctx, &s.Ways[i]) })
	}
	asked.Wait()
	return s
}

// neighbours lists the hosts online that share a segment: all servers and
// relays, and some of the others.
func (n *Node) neighbours() []Neighbour {
	own := n.Record().Segments
	var ordinary []Neighbour
	all := []Neighbour{}
	for _, m := range n.roster.Members() {
		near := slices.ContainsFunc(m.Segments, func(s string) bool { return slices.Contains(own, s) })
		if m.HostID == n.cfg.Identity.HostID || m.Liveness != Online || !near || m.Addr == "" {
			continue
		}
		b := Neighbour{HostID: m.HostID, Role: m.Role, Relay: m.Relay(), NodePort: m.Addr}
		if b.Relay || b.Role == string(identity.RoleServer) {
			all = append(all, b)
		} else {
			ordinary = append(ordinary, b)
		}
	}
	return append(all, someOf(ordinary, surveyPings)...)
}

// someOf returns at most n elements, drawn by chance. It reorders all.
func someOf[T any](all []T, n int) []T {
	mathrand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(len(all), n)]
}

// tryWay fills in how messages get to a server, and whether one came back.
func (n *Node) tryWay(ctx context.Context, w *Way) {
	w.Direct = slices.ContainsFunc(n.pools, func(p *pool) bool { _, ok := p.livePeer(w.HostID); return ok })
	if !w.Direct {
		for _, h := range n.nextHops(w.HostID, nil) {
			w.Relays = append(w.Relays, h.relay)
		}
	}
	answer, took, err := n.ping(ctx, w.HostID)
	if err != nil {
		w.Error = err.Error()
		return
	}
	w.Name, w.RoundTrip = answer.from.Name, took
	w.Skew = time.Until(answer.At.Add(took / 2))
}

// ping sends a message to a host and waits for its answer.
func (n *Node) ping(ctx context.Context, hostID string) (answer ping, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	nonce := rand.Text()
	answered := make(chan ping, 1)
	n.pings.mu.Lock()
	n.pings.waiting[hostID+nonce] = answered
	n.pings.mu.Unlock()
	defer func() {
		n.pings.mu.Lock()
		delete(n.pings.waiting, hostID+nonce)
		n.pings.mu.Unlock()
	}()
	start := time.Now()
	payload, err := json.Marshal(ping{Nonce: nonce, At: start})
	if err != nil {
		return ping{}, 0, err
	}
	if err := n.Send(ctx, hostID, topicPing, payload); err != nil {
		return ping{}, 0, err
	}
	select {
	case answer = <-answered:
		return answer, time.Since(start), nil
	case <-ctx.Done():
		return ping{}, 0, errors.New("a message was sent, and no answer came back: it is down, cannot reach this host, or runs a moult too old to answer")
	case <-n.stop:
		return ping{}, 0, ErrClosed
	}
}

// survey counts the pool's members and pings some that are alive, drawn by
// chance.
func (p *pool) survey() PoolSurvey {
	s := PoolSurvey{Segment: p.segment, Address: p.ownAddr}
	p.mu.Lock()
	s.Alive = len(p.peers.here)
	s.Gone = len(p.peers.byID) - s.Alive
	p.mu.Unlock()
	asking := p.anyPeers(surveyPings, "")
	s.Pings = make([]PacketPing, len(asking))
	var asked sync.WaitGroup
	for i, node := range asking {
		s.Pings[i] = PacketPing{HostID: node.Name, Address: node.Address()}
		asked.Go(func() {
			took, err := p.list.Ping(node.Name, &net.UDPAddr{IP: node.Addr, Port: int(node.Port)})
			if err != nil {
				s.Pings[i].Error = err.Error()
				return
			}
			s.Pings[i].RoundTrip = took
		})
	}
	asked.Wait()
	slices.SortFunc(s.Pings, func(a, b PacketPing) int { return cmp.Compare(a.HostID, b.HostID) })
	return s
}
