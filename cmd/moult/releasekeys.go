package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"sync"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater/release"
)

// How the changes of the release keys reach the hosts: a server sends the newest
// statement to each host that has not said that it follows it; the host answers
// which one it follows; where that is an older one, the server sends those that
// come after it. Orders bring the newest ones along too. Lost messages are made
// good by the next round.
const (
	keysEvery = 10 * time.Second // a round

	keysAtOnce = 16 // messages on their way at a time

)

// keyDistributor is a server's side.
type keyDistributor struct {
	raft   *consensus.Node
	roster *mesh.Roster
	send   func(ctx context.Context, host, topic string, payload []byte) error
	logger *slog.Logger

	mu      sync.Mutex
	follows map[string]uint64 // by host id, as the hosts say
}

// statementsAfter returns the statements behind a number, at most n.
func statementsAfter(c fleet.Cluster, number uint64, n int) (out []release.SignedStatement) {
	for i := number; i < uint64(len(c.KeyStatements)) && len(out) < n; i++ {
		out = append(out, release.SignedStatement{Statement: c.KeyStatements[i].Statement, Signature: c.KeyStatements[i].Signature})
	}
	return out
}

// newest is where the newest n statements begin.
func newest(c fleet.Cluster, n uint64) uint64 { return c.KeysNumber - min(c.KeysNumber, n) }

// followed returns what the hosts say that they follow.
func (d *keyDistributor) followed() map[string]uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.follows)
}

// handle takes a host's answer.
func (d *keyDistributor) handle(from identity.Identity, payload []byte) {
	c, _ := d.raft.State().View().Cluster()
	if list, lacks := d.take(from, payload, c); lacks {
		d.tell(context.Background(), from.HostID, list)
	}
}

// take notes which statement a host follows, and returns those that it lacks. A
// number beyond the newest is no answer to us.
func (d *keyDistributor) take(from identity.Identity, payload []byte, c fleet.Cluster) (list []release.SignedStatement, lacks bool) {
	var said nodekit.KeysFollowed
	if json.Unmarshal(payload, &said) != nil || said.Number > c.KeysNumber {
		d.logger.Warn("a host's word on its release keys is refused", "host", from.HostID, "number", said.Number)
		return nil, false
	}
	d.mu.Lock()
	d.follows[from.HostID] = said.Number
	d.mu.Unlock()
	list = statementsAfter(c, said.Number, nodekit.KeysPerMessage)
	return list, len(list) > 0
}

// run tells the hosts until ctx ends.
func (d *keyDistributor) run(ctx context.Context) {
	events, stop := d.raft.State().Subscribe()
	defer stop()
	ticker := time.NewTicker(keysEvery)
	defer ticker.Stop()
	var told uint64 // the number of the last change that went out at once
	for {
		c, _ := d.raft.State().View().Cluster()
		d.round(ctx, c)
		told = c.KeysNumber
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				due = true
			case <-events:
				now, _ := d.raft.State().View().Cluster()
				due = now.KeysNumber != told
			}
		}
	}
}

// round sends the newest statement to each host that may lack it.
func (d *keyDistributor) round(ctx context.Context, c fleet.Cluster) {
	if c.KeysNumber == 0 {
		return
	}
	follows := d.followed()
	var sends sync.WaitGroup
	slots := make(chan struct{}, keysAtOnce)
	for _, m := range d.roster.Members() {
		if m.Liveness != mesh.Online || follows[m.HostID] == c.KeysNumber || ctx.Err() != nil {
			continue
		}
		slots <- struct{}{}
		sends.Go(func() {
			defer func() { <-slots }()
			d.tell(ctx, m.HostID, statementsAfter(c, newest(c, 1), 1))
		})
	}
	sends.Wait()
}

func (d *keyDistributor) tell(ctx context.Context, hostID string, list []release.SignedStatement) {
	payload, err := json.Marshal(nodekit.KeysMessage{Statements: list})
	if err != nil {
		d.logger.Error("encode key statements", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, nodekit.KeysTimeout)
	defer cancel()
	if err := d.send(ctx, hostID, nodekit.TopicReleaseKeys, payload); err != nil {
		d.logger.Debug("send key statements", "host", hostID, "error", err)
	}
}
