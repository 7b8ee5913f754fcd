package convergence

import (
	"io"
	"log"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/serf"

	"moult/mesh"
	"moult/mesh/identity"
)

var discard = log.New(io.Discard, "", 0)

// moultMember is a node of moult's mesh, as production runs it: encrypted, with
// signed records, which the servers verify.
type moultMember struct{ node *mesh.Node }

func startMoult(t *testing.T, f *fleet, i int) member {
	id := identity.Identity{Cluster: cluster, HostID: hostID(i), Name: hostID(i), Role: role(i)}
	cfg := mesh.Config{
		Identity: id, Key: f.key(id.HostID), CertDER: f.certificate(id), Verifier: f.verifier, Boot: f.boot.Load(),
		OS: "linux", Arch: "amd64", Version: "1.0.0", Digest: digest, PeerAddr: "127.0.0.1:7947",
		HostsPerAddress: 8, // all are at one
		Logger:          slog.New(slog.DiscardHandler),
		Pools:           []mesh.PoolConfig{{Segment: segment, Bind: loopback + ":0", Keys: [][]byte{make([]byte, 32)}}},
		Transport:       func(_, _ string) (memberlist.NodeAwareTransport, error) { return f.listen(i) },
	}
	if role(i) == identity.RoleServer {
		cfg.KeyOf = f.enrolled
		cfg.RoleOf = func(host string) (identity.Role, bool) { return role(hostNumber(host)), true }
	}
	n, err := mesh.Start(t.Context(), cfg)
	must(t, err)
	return moultMember{n}
}

func (m moultMember) address() string { return m.node.GossipAddrs()[0] }

func (m moultMember) join(addr string) error {
	_, err := m.node.Join([]string{addr})
	return err
}

func (m moultMember) members() int { return m.node.LivePeers() + 1 }

func (m moultMember) change(generation int) { m.node.Announce(mesh.PhaseFetching, jobID(generation)) }

func (m moultMember) knows(other, generation int) bool {
	r, ok := m.node.Roster().Member(hostID(other))
	return ok && r.JobID == jobID(generation)
}

func (m moultMember) restarted(other int, boot uint64) bool {
	r, ok := m.node.Roster().Member(hostID(other))
	return ok && r.Boot == boot && r.Liveness == mesh.Online
}

func (m moultMember) close() { _ = m.node.Close() }

// view is what a member of the others was told: the newest record of each.
type view struct {
	mu    sync.Mutex
	known map[string]mesh.Record
	own   atomic.Pointer[[]byte]
}

func newView() *view { return &view{known: map[string]mesh.Record{}} }

func (v *view) take(name string, meta []byte) {
	rec, err := mesh.DecodeRecord(meta)
	if err != nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known[name] = rec.Record
}

func (v *view) knows(other, generation int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	known, ok := v.known[hostID(other)]
	return ok && int(known.Seq)-1 >= generation
}

func (v *view) restarted(other int, boot uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.known[hostID(other)].Boot == boot
}

// memberlistMember is memberlist with DefaultLANConfig and the record as metadata.
// Compression is off: it takes 100 KiB anew for each packet, for which hundreds of
// members in one process would wait, and what a packet holds is reckoned without it.
type memberlistMember struct {
	*view
	f    *fleet
	i    int
	list *memberlist.Memberlist
}

func startMemberlist(t *testing.T, f *fleet, i int) member {
	m := &memberlistMember{view: newView(), f: f, i: i}
	raw := f.record(i, 0)
	m.own.Store(&raw)
	cfg := memberlist.DefaultLANConfig()
	cfg.Name, cfg.Logger, cfg.EnableCompression = hostID(i), discard, false
	cfg.Delegate, cfg.Events = m, m
	transport, err := f.listen(i)
	must(t, err)
	cfg.Transport, cfg.AdvertiseAddr, cfg.AdvertisePort = transport, loopback, transport.port
	m.list, err = memberlist.Create(cfg)
	must(t, err)
	return m
}

func (m *memberlistMember) address() string { return m.list.LocalNode().Address() }

func (m *memberlistMember) join(addr string) error {
	_, err := m.list.Join([]string{addr})
	return err
}

func (m *memberlistMember) members() int { return m.list.NumMembers() }

func (m *memberlistMember) change(generation int) {
	raw := m.f.record(m.i, generation)
	m.own.Store(&raw)
	_ = m.list.UpdateNode(oneCap) // it returns when it is told often enough, or never, where its queue lost it
}

func (m *memberlistMember) close() { _ = m.list.Shutdown() }

func (m *memberlistMember) NodeMeta(int) []byte             { return *m.own.Load() }
func (m *memberlistMember) NotifyMsg([]byte)                {}
func (m *memberlistMember) GetBroadcasts(int, int) [][]byte { return nil }
func (m *memberlistMember) LocalState(bool) []byte          { return nil }
func (m *memberlistMember) MergeRemoteState([]byte, bool)   {}
func (m *memberlistMember) NotifyJoin(n *memberlist.Node)   { m.take(n.Name, n.Meta) }
func (m *memberlistMember) NotifyUpdate(n *memberlist.Node) { m.take(n.Name, n.Meta) }
func (m *memberlistMember) NotifyLeave(*memberlist.Node)    {}

// recordTag is the tag that carries the record.
const recordTag = "record"

// serfMember is serf with its defaults, but for compression as memberlist here, and the
// record as a tag.
type serfMember struct {
	*view
	f    *fleet
	i    int
	serf *serf.Serf
	stop chan struct{}
}

func startSerf(t *testing.T, f *fleet, i int) member {
	events := make(chan serf.Event, 4096)
	m := &serfMember{view: newView(), f: f, i: i, stop: make(chan struct{})}
	cfg := serf.DefaultConfig()
	cfg.NodeName, cfg.Logger, cfg.EventCh = hostID(i), discard, events
	cfg.Tags = map[string]string{recordTag: string(f.record(i, 0))}
	transport, err := f.listen(i)
	must(t, err)
	cfg.MemberlistConfig.Transport, cfg.MemberlistConfig.Logger, cfg.MemberlistConfig.EnableCompression = transport, discard, false
	cfg.MemberlistConfig.AdvertiseAddr, cfg.MemberlistConfig.AdvertisePort = loopback, transport.port
	m.serf, err = serf.Create(cfg)
	must(t, err)
	go func() {
		for {
			select {
			case e := <-events:
				if e, ok := e.(serf.MemberEvent); ok && (e.Type == serf.EventMemberJoin || e.Type == serf.EventMemberUpdate) {
					for _, member := range e.Members {
						m.take(member.Name, []byte(member.Tags[recordTag]))
					}
				}
			case <-m.stop:
				return
			}
		}
	}()
	return m
}

func (m *serfMember) address() string {
	own := m.serf.LocalMember()
	return (&memberlist.Node{Addr: own.Addr, Port: own.Port}).Address()
}

func (m *serfMember) join(addr string) error {
	_, err := m.serf.Join([]string{addr}, true)
	return err
}

func (m *serfMember) members() int { return m.serf.NumNodes() }

func (m *serfMember) change(generation int) {
	_ = m.serf.SetTags(map[string]string{recordTag: string(m.f.record(m.i, generation))}) // it waits for the telling, as memberlist does
}

func (m *serfMember) close() {
	_ = m.serf.Shutdown()
	close(m.stop)
}
