package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// memberKnowledge is what a server tells others of the Raft configuration.
type memberKnowledge struct{ raft *consensus.Node }

func (m memberKnowledge) get(context.Context, identity.Identity, struct{}) (consensus.Membership, error) {
	return m.raft.Membership(), nil
}

// hear takes what another server tells, which this one may not know yet.
func (m memberKnowledge) hear(ctx context.Context, from identity.Identity, claim consensus.Membership) (struct{}, error) {
	return struct{}{}, m.raft.Hear(ctx, from.HostID, claim)
}

// onlyHosts lets those through that the state knows, and servers that tell this
// one of a configuration that it may not know.
func (g *memberGate) onlyHosts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := g.knows(nodeport.PeerFrom(r.Context()))
		tells := r.Method == http.MethodPost && r.URL.Path == pathMembers
		if err != nil && !tells {
			w.Header().Set("Connection", "close")
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// addressKeeper has a server dialled where it listens now.
type addressKeeper struct {
	raft    *consensus.Node
	others  *serverClient
	self    fleet.Host // with the addresses of this start
	servers []string   // further node ports to ask at
	logger  *slog.Logger
}

// run asks until the Raft configuration and the state have the addresses of this
// start. Most starts find that they do.
func (k *addressKeeper) run(ctx context.Context) {
	for {
		done, err := k.settle(ctx)
		if done || ctx.Err() != nil {
			return
		}
		if err != nil {
			k.logger.Warn("tell the others this server's address", "peer", k.self.PeerAddr, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(nodekit.RetryInterval):
		}
	}
}

func (k *addressKeeper) settle(ctx context.Context) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, nodeCallTimeout)
	defer cancel()
	at, member := k.configured()
	if !member {
		return false, nil // not added yet; or removed, which another start may tell
	}
	if at != k.self.PeerAddr {
		if err := k.move(ctx); err != nil {
			return false, err
		}
		k.logger.Info("the servers dial this one at its new address", "peer", k.self.PeerAddr, "before", at)
	}
	if k.raft.Ready() != nil {
		return false, nil // the state may be behind
	}
	h, ok := k.raft.View().Host(k.self.ID)
	if !ok {
		return true, nil
	}
	if h.GossipAddr != k.self.GossipAddr || h.PeerAddr != k.self.PeerAddr || h.HTTPAddr != k.self.HTTPAddr {
		_, err = k.raft.Propose(ctx, "host:"+h.Name, fleet.HostAddressesChanged{
			HostID: h.ID, GossipAddr: k.self.GossipAddr, PeerAddr: k.self.PeerAddr, HTTPAddr: k.self.HTTPAddr,
		})
	}
	if err == nil && h.HTTPTLS != k.self.HTTPTLS {
		_, err = k.raft.Propose(ctx, "host:"+h.Name, fleet.ServerTLSChanged{HostID: h.ID, TLS: k.self.HTTPTLS})
		var refused *fleet.Error
		if errors.As(err, &refused) && refused.Code == fleet.CodeUnknownChange {
			return false, nil // until the last older server is updated
		}
	}
	return err == nil, err
}

// configured returns where the others dial this server.
func (k *addressKeeper) configured() (addr string, member bool) {
	for _, s := range k.raft.Servers() {
		if s.ID == k.self.ID {
			return s.Address, true
		}
	}
	return "", false
}

// move has the leader change the configuration. The leader does not reach this
// server at its old address, so this one need not know who it is: any other server
// does.
func (k *addressKeeper) move(ctx context.Context) error {
	if k.raft.IsLeader() {
		return k.raft.AddServer(ctx, k.self.ID, k.self.PeerAddr)
	}
	addrs := slices.Clone(k.servers)
	for _, s := range k.raft.Servers() {
		if s.ID != k.self.ID {
			addrs = append(addrs, s.Address)
		}
	}
	if len(addrs) == 0 {
		return errors.New("this server is to lead, and does not yet")
	}
	var errs []error
	for _, addr := range addrs {
		if addr == k.self.PeerAddr {
			continue
		}
		err := k.others.PostJSON(ctx, addr, pathAddServer, addServerRequest{ID: k.self.ID, Address: k.self.PeerAddr}, nil)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Members asks a server for the Raft configuration that it knows. The certificate
// says whether it is that server: another one may have its address by now.
func (c *serverClient) Members(ctx context.Context, id, addr string) (m consensus.Membership, err error) {
	answer, from, err := c.exchange(ctx, http.MethodGet, addr, pathMembers, nil)
	if err != nil {
		return m, err
	}
	if from.HostID != id {
		return m, fmt.Errorf("at %s is server %s, not %s", addr, from.HostID, id)
	}
	return m, json.Unmarshal(answer, &m)
}
