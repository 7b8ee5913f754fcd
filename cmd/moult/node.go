package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
)

// newLogger logs to stderr: text for people, JSON when asked for, and what the
// journal expects where stderr is the journal.
func newLogger(o nodeOptions, w io.Writer) *slog.Logger {
	o.setLevel()
	opts := &slog.HandlerOptions{Level: o.level}
	if o.logJSON || o.json {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	if o.logJournal || stderrIsJournal(w) {
		return slog.New(newJournalHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// setLevel has the log tell as much as logDebug says.
func (o *nodeOptions) setLevel() {
	if o.logDebug {
		o.level.Set(slog.LevelDebug)
	} else {
		o.level.Set(slog.LevelInfo)
	}
}

// buildInfo is what this program was built as.
type buildInfo struct {
	version string
	number  uint64 // of the release; 0: not known
}

// self is what a process knows of itself.
type self struct {
	build      buildInfo
	executable string
	digest     string // sha256 of the executable, 64 hex digits
	boot       uint64
}

func describeSelf(dataDir string, b buildInfo) (self, error) {
	exe, err := os.Executable()
	if err != nil {
		return self{}, fmt.Errorf("find this binary: %w", err)
	}
	digest, err := fileDigest(exe)
	if err != nil {
		return self{}, fmt.Errorf("hash this binary: %w", err)
	}
	boot, err := nextBoot(dataDir)
	if err != nil {
		return self{}, fmt.Errorf("count this start: %w", err)
	}
	return self{build: b, executable: exe, digest: digest, boot: boot}, nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// nextBoot returns the number of this start. It rises even when the file was
// lost, as long as the clock did not fall behind it.
func nextBoot(dataDir string) (uint64, error) {
	path := filepath.Join(dataDir, "boot")
	var last uint64
	if text, err := os.ReadFile(path); err == nil {
		last, _ = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	}
	boot := max(last+1, uint64(time.Now().Unix()))
	return boot, writeFileAtomic(path, fmt.Appendf(nil, "%d\n", boot), 0o600)
}

func publicKey(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// leaveAndClose tells the others that this host goes, then closes the mesh.
func leaveAndClose(node *mesh.Node, logger *slog.Logger) {
	if err := node.Leave(leaveTimeout); err != nil {
		logger.Debug("leave the mesh", "error", err)
	}
	if err := node.Close(); err != nil {
		logger.Warn("close the mesh", "error", err)
	}
}

// enrolledKey looks a host's key up in the replicated state.
func enrolledKey(raft *consensus.Node) func(hostID string) (ed25519.PublicKey, bool) {
	return func(hostID string) (ed25519.PublicKey, bool) {
		h, ok := raft.State().View().Host(hostID)
		return ed25519.PublicKey(h.PublicKey), ok
	}
}

// maxAgentSeeds bounds how many agents a server that knows no other server asks.
const maxAgentSeeds = 16

// gossipSeeds adds the other servers' gossip addresses, as the state knows them by
// now, to those of joining: the first server knows none by that. A server that was
// restored from a backup is the only one, and where the agents knew the others to be
// there is nobody: it looks for the agents.
func gossipSeeds(raft *consensus.Node, self string, pools []mesh.PoolConfig) {
	hosts := raft.State().View().Hosts()
	for i, p := range pools {
		seeds := slices.Clone(p.Join)
		var agents []string
		for _, h := range hosts {
			addr := h.GossipAddrIn(p.Segment)
			switch {
			case h.ID == self || addr == "" || slices.Contains(seeds, addr):
			case h.Role == fleet.RoleServer:
				seeds = append(seeds, addr)
			case len(agents) < maxAgentSeeds:
				agents = append(agents, addr)
			}
		}
		if len(seeds) == 0 {
			seeds = agents
		}
		pools[i].Join = seeds
	}
}

// enrolledRole looks a host's role up in the replicated state: gossip makes no
// server of an agent.
func enrolledRole(raft *consensus.Node) func(hostID string) (identity.Role, bool) {
	return func(hostID string) (identity.Role, bool) {
		h, ok := raft.State().View().Host(hostID)
		return roleOf(h.Role), ok
	}
}

// memberGate decides who may speak on a server's node port. It lets nobody in
// before Raft is open.
type memberGate struct {
	raft   atomic.Pointer[consensus.Node]
	denied func(hostID string) bool // by the deny-list; nil: nobody
}

func (g *memberGate) open(raft *consensus.Node) { g.raft.Store(raft) }

// allow holds a certificate against the replicated state. A server that has no
// state yet, because it is just being added, believes other servers' certificates.
func (g *memberGate) allow(alpn string, id identity.Identity) error {
	raft := g.raft.Load()
	if raft == nil {
		return errors.New("this server is starting")
	}
	if g.denied != nil && g.denied(id.HostID) {
		return identity.ErrDenied
	}
	fresh := !raft.Configured()
	if alpn == identity.ALPNRaft {
		if id.Role != identity.RoleServer {
			return errors.New("only servers speak Raft")
		}
		if !fresh && !raft.IsMember(id.HostID) {
			return errors.New("this server is not in the Raft configuration")
		}
		return nil
	}
	if alpn == identity.ALPNHTTP && id.Role == identity.RoleServer {
		return nil // onlyHosts looks at the request
	}
	return g.knows(id)
}

// knows tells whether a host is one by the state. A server that has no state yet
// believes other servers' certificates.
func (g *memberGate) knows(id identity.Identity) error {
	raft := g.raft.Load()
	if raft == nil {
		return errors.New("this server is starting")
	}
	v := raft.State().View()
	if _, initialized := v.Cluster(); !initialized {
		if id.Role == identity.RoleServer {
			return nil
		}
		return errors.New("this server is starting")
	}
	if _, known := v.Host(id.HostID); !known {
		return errors.New("this host was removed; join it again with a new token")
	}
	return nil
}

// roleOf converts between the two packages' names of the same thing.
func roleOf(r fleet.HostRole) identity.Role {
	if r == fleet.RoleServer {
		return identity.RoleServer
	}
	return identity.RoleAgent
}
