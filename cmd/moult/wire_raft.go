package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// openRaft opens this server's Raft node. Entries go over the node port's Raft
// protocol, all else that servers ask each other over HTTP on the same port.
func openRaft(o serverOptions, hostID string, port *nodeport.Port, current *identity.Current, others *serverClient, unfit func() error, logger *slog.Logger) (*consensus.Node, error) {
	// Entries hold secrets, a new CA's key among them: whoever has the present one's
	// must not get it. So they go to members of the group only, and of those a server
	// knows the keys (identity.Trusted).
	var opened atomic.Pointer[consensus.Node]
	member := onlyMembers(func() []consensus.ServerStatus {
		if n := opened.Load(); n != nil {
			return n.Servers()
		}
		return nil
	})
	leader := &serverClient{http: nodeport.Client(current.Get, member), statusTimeout: others.statusTimeout}
	node, err := consensus.Open(consensus.Config{
		Dir: filepath.Join(o.Data, "raft"), ServerID: hostID, Address: o.PeerAdv,
		Listener: port.Raft(),
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return nodeport.DialRaft(ctx, current.Get(), addr, member)
		},
		Forward: func(ctx context.Context, _, addr string, req []byte) ([]byte, error) {
			return leader.Post(ctx, addr, pathPropose, req)
		},
		Progress: func(ctx context.Context, _, addr string) (uint64, error) {
			st, err := others.Status(ctx, addr)
			return st.AppliedIndex, err
		},
		Kinds: func(ctx context.Context, _, addr string) ([]string, error) {
			st, err := others.Status(ctx, addr)
			if st.Kinds == nil {
				st.Kinds = fleet.FirstKinds()
			}
			return st.Kinds, err
		},
		Tell: func(ctx context.Context, _, addr string, m consensus.Membership) error {
			return others.PostJSON(ctx, addr, pathMembers, m, nil)
		},
		Ask:       others.Members,
		Unfit:     unfit,
		Snapshots: o.snapshots,
		Logger:    logger,
		Timing:    o.raft.timing(),
	})
	opened.Store(node)
	return node, err
}

// onlyMembers refuses whoever is not in the Raft configuration, as this server knows
// it.
func onlyMembers(servers func() []consensus.ServerStatus) func(identity.Identity) error {
	return func(id identity.Identity) error {
		for _, s := range servers() {
			if s.ID == id.HostID && id.Role == identity.RoleServer {
				return nil
			}
		}
		return fmt.Errorf("%s is not in this server's Raft group", id)
	}
}

// joinRaft commits the cluster's first entry, or has this server added to the
// Raft group, unless that happened before.
func joinRaft(ctx context.Context, o serverOptions, raft *consensus.Node, others *serverClient, creds identity.Credentials, logger *slog.Logger) error {
	first, err := pendingBootstrap(o.Data)
	if err != nil {
		return err
	}
	if first != nil {
		if !raft.Configured() {
			if err := raft.Bootstrap(ctx); err != nil {
				return err
			}
		}
		_, err := raft.Propose(ctx, "system", *first)
		var refused *fleet.Error
		if err != nil && (!errors.As(err, &refused) || refused.Code != fleet.CodeClusterExists) {
			return fmt.Errorf("commit the cluster's first entry: %w", err)
		}
		return os.Remove(filepath.Join(o.Data, bootstrapFile))
	}
	req := addServerRequest{ID: creds.HostID, Address: o.PeerAdv}
	for !raft.Configured() {
		var errs []error
		for _, addr := range append(creds.Servers, o.Join...) {
			if addr == o.PeerAdv {
				continue
			}
			err := others.PostJSON(ctx, addr, pathAddServer, req, nil)
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		logger.Warn("waiting to be added to the servers", "error", errors.Join(errs...))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(nodekit.RetryInterval):
		}
	}
	return nil
}
