package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/artifact"
	"moult/webui"
)

// membership tells who the servers are and adds new ones.
type membership struct {
	raft    *consensus.Node
	servers *serverClient
	health  *healthWatch
	self    string
	// patience is how long this server waits to be allowed to restart.
	patience  time.Duration
	forgeries *forgeryWatch
}

// add has a joined server become a member of the Raft group.
func (m *membership) add(ctx context.Context, from identity.Identity, in addServerRequest) (struct{}, error) {
	if in.ID != from.HostID {
		return struct{}{}, errors.New("a server can only add itself")
	}
	return struct{}{}, m.raft.AddServer(ctx, in.ID, in.Address)
}

// status tells the others how this server is.
func (m *membership) status(context.Context, identity.Identity, struct{}) (nodeStatus, error) {
	return m.own(), nil
}

func (m *membership) own() nodeStatus {
	problems := m.health.problems()
	return nodeStatus{
		Version: version, AppliedIndex: m.raft.AppliedIndex(), Ready: !isFailing(problems), Problems: problems,
		Kinds: fleet.Known(), Now: time.Now(), ForgeryCalm: m.forgeries.calm(time.Now()),
	}
}

// caughtUpSlack is how many entries behind this server still counts as caught up.
const caughtUpSlack = 64

// Servers asks every server how it is, all at once.
func (m *membership) Servers(ctx context.Context) []webui.ServerStatus {
	mine := m.raft.AppliedIndex() // before the others are asked: what they must have reached
	list := m.raft.Servers()
	out := make([]webui.ServerStatus, len(list))
	v := m.raft.State().View()
	var asked sync.WaitGroup
	for i, s := range list {
		st := webui.ServerStatus{ID: s.ID, Name: s.ID, Address: s.Address, Leader: s.Leader, Voter: s.Voter}
		if h, ok := v.Host(s.ID); ok {
			st.Name, st.Standby = h.Name, h.Standby
		}
		asked.Go(func() {
			answer, err := m.own(), error(nil)
			if s.ID != m.self {
				answer, err = m.servers.Status(ctx, s.Address)
			}
			st = answer.Show(st, err)
			st.CaughtUp = st.Healthy && st.AppliedIndex+caughtUpSlack >= mine
			out[i] = st
		})
	}
	asked.Wait()
	return out
}

// Group tells how the servers are that hold the log.
func (m *membership) Group(ctx context.Context) []fleet.GroupMember {
	return webui.GroupOf(m.Servers(ctx))
}

// mayRestart returns when this server may restart without the others losing their
// majority, or why not. They were asked before the dispatch; since then the release
// was fetched, and one of them may have gone.
func (m *membership) mayRestart(ctx context.Context) error {
	name := m.self
	if h, ok := m.raft.View().Host(m.self); ok {
		name = h.Name
	}
	ctx, cancel := context.WithTimeout(ctx, m.patience)
	defer cancel()
	for {
		why := fleet.HoldsUpRestart(m.Group(ctx), m.self, name)
		if why == "" {
			return nil
		}
		if !nodekit.Sleep(ctx, nodekit.RetryInterval) {
			return errors.New(why)
		}
	}
}

// RemoveServer takes a server out of the Raft group.
func (m *membership) RemoveServer(ctx context.Context, id string) error {
	return m.explained(m.raft.RemoveServer(ctx, id))
}

// DemoteServer takes a server's vote.
func (m *membership) DemoteServer(ctx context.Context, id string) error {
	return m.explained(m.raft.DemoteServer(ctx, id))
}

// TransferLeadership lets another server lead.
func (m *membership) TransferLeadership(ctx context.Context) error {
	return m.explained(m.raft.TransferLeadership(ctx))
}

// explained makes a refusal by the Raft group one of the API, with the servers'
// names in it: consensus knows their ids only.
func (m *membership) explained(err error) error {
	if !errors.Is(err, consensus.ErrRefused) {
		return err
	}
	message := err.Error()
	for _, h := range m.raft.State().View().Hosts() {
		if h.Role == fleet.RoleServer {
			message = strings.ReplaceAll(message, h.ID, h.Name)
		}
	}
	return &fleet.Error{Code: fleet.CodeConflict, Message: message}
}

// binaries opens the current release's binaries for /agent/binary.
type binaries struct {
	raft  *consensus.Node
	store *artifact.Store
	self  nodekit.Self
}

// Open returns the newest release's binary for a platform, or before any
// release exists this server's own.
func (b *binaries) Open(goos, goarch string) (webui.Binary, error) {
	rel, ok := b.raft.State().View().NewestRelease()
	if !ok {
		return b.own(goos, goarch)
	}
	a, ok := rel.Artifact(goos, goarch)
	if !ok {
		return webui.Binary{}, webui.ErrNoSuchBuild
	}
	content, size, err := b.store.Open(a.SHA256)
	if err != nil {
		return webui.Binary{}, fmt.Errorf("open release %s: %w", rel.Version, err)
	}
	return webui.Binary{Content: content, Size: size, SHA256: a.SHA256, Version: rel.Version}, nil
}

func (b *binaries) own(goos, goarch string) (webui.Binary, error) {
	if goos != runtime.GOOS || goarch != runtime.GOARCH {
		return webui.Binary{}, webui.ErrNoSuchBuild
	}
	f, err := os.Open(b.self.Executable)
	if err != nil {
		return webui.Binary{}, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return webui.Binary{}, err
	}
	return webui.Binary{Content: f, Size: size, SHA256: b.self.Digest, Version: version}, nil
}

// Show completes what is told of a server by what it answered.
func (a nodeStatus) Show(st webui.ServerStatus, err error) webui.ServerStatus {
	st.Version, st.AppliedIndex, st.Healthy, st.Problems = a.Version, a.AppliedIndex, err == nil && a.Ready, a.Problems
	switch {
	case err != nil:
		st.Problems = judge(serverFacts{Silent: withoutURL(err)}) // whom it asked is told beside
	case !a.Ready && len(a.Problems) == 0: // an older server, which does not tell why
		st.Problems = []webui.Problem{{Code: problemNoLeader, Message: "it is not ready", Next: "its /readyz tells why", Failing: true}}
	}
	return st
}
