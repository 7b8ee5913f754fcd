package nodekit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
	"moult/updater"
	"moult/updater/artifact"
	"moult/updater/install"
	"moult/updater/release"
)

// leaveTimeout bounds telling the mesh that this host goes.
const leaveTimeout = 2 * time.Second

// RunAgent is the supervisor, or in its child the agent itself.
func RunAgent(ctx context.Context, o AgentOptions, stdout, stderr io.Writer) error {
	link, supervised := updater.Supervised()
	if !supervised || o.Work == nil { // beside a program's own work the heap is that one's affair
		KeepHeapSmall()
		if !supervised || len(o.Also) == 0 { // a relay may have much to pass on
			KeepToOneCore()
		}
	}
	if supervised {
		return runSupervisedAgent(ctx, o, link, stderr)
	}
	logger := NewLogger(o.NodeOptions, stderr).With("host", o.Name)
	if o.Reread != nil {
		go OnHangup(ctx, func() { passReloadOn(ctx, o, logger) }) // from the start: SIGHUP would end the process
	}
	service := NewServiceManager(ctx, logger)
	defer service.Close()
	service.Well(JoinPatience)
	if err := CheckBinary(o.Trial.Binary, o.AnyDataPath); err != nil {
		return err
	}
	unlock, err := OpenDataDir(o.Data, o.AnyDataPath)
	if err != nil {
		return err
	}
	defer unlock()
	active := o.Trial.BeginActive(o.Data, o.Build, logger)
	// Joining needs no trial, and its errors are for the person who typed the
	// command: done here, not in a child that would be restarted over them.
	ids, err := identity.OpenStore(filepath.Join(o.Data, "identity"))
	if err != nil {
		return err
	}
	if err := o.FindAddresses(ids); err != nil {
		return err
	}
	creds, err := Enrol(ctx, ids, o.NodeOptions, "", nil)
	if err != nil {
		return err
	}
	if creds.Role != identity.RoleAgent {
		return fmt.Errorf("%s belongs to a server; run `moult server` on it, or give another --data", o.Data)
	}
	current := identity.NewCurrent(ids, creds)
	if err := AwaitSegmentKeys(ctx, o.NodeOptions, current, agentAsk(o.NodeOptions, current), logger); err != nil {
		return err
	}
	supervisor := o.Trial.Supervisor(o.Data, active, stderr, logger, service)
	supervisor.Restart = o.Restart
	go ComeToRest(ctx, freeInterval, logger)
	return updater.RunSupervisor(ctx, supervisor)
}

// runSupervisedAgent is the agent process:
//
//	orders ──▶ mesh (--gossip) ──▶ updater ── fetch ──▶ peers' node ports
//	             ▲    │               │
//	   records, reports ◀─────────────┘ stage, trial marker, exit 75
//	                                        │
//	node port (--peer) ── /artifact ──▶ artifact store ◀── puller, on a relay
//	             └─ on a relay: joining hosts' bytes ──▶ a server, or a further relay
//
// It ends with updater.ErrRestart when a trial is staged: the supervisor takes
// it from there.
func runSupervisedAgent(ctx context.Context, o AgentOptions, link *updater.SupervisorLink, stderr io.Writer) error {
	logger := NewLogger(o.NodeOptions, stderr).With("host", o.Name)
	ids, err := identity.OpenStore(filepath.Join(o.Data, "identity"))
	if err != nil {
		return err
	}
	if err := o.FindAddresses(ids); err != nil {
		return err
	}
	creds, err := ids.Load()
	if err != nil {
		return err
	}
	current := identity.NewCurrent(ids, creds)
	me, err := DescribeSelf(o.Data, o.Build, link)
	if err != nil {
		return err
	}
	relays := len(o.Also) > 0
	port, err := nodeport.Listen(o.Peer, func() (identity.Credentials, bool) { return current.Get(), true }, AgentGate(relays, creds.Denials.Host), logger.With("component", "nodeport"), nodeport.HostsPerAddress(o.Serve.Hosts), nodeport.AllowFrom(o.Networks))
	if err != nil {
		return err
	}
	defer CloseWithin(port.Close, logger, "node port")
	pools, err := o.Pools(creds)
	if err != nil {
		return err
	}
	seeds := NewSeedFinder(current, o.Join, logger.With("component", "seeds"))
	node, err := mesh.Start(ctx, mesh.Config{
		Identity: creds.Identity, Key: creds.Key, CertDER: creds.CertDER(), Verifier: creds.Verifier(), Boot: me.Boot,
		OS: runtime.GOOS, Arch: runtime.GOARCH, Version: me.Build.Version, Digest: me.Digest, PeerAddr: o.PeerAdv,
		HostsPerAddress: o.Serve.Hosts,
		Pools:           pools, FindSeeds: seeds.Find, Denied: creds.Denials.Host, Logger: logger.With("component", "mesh"),
	})
	if err != nil {
		return err
	}
	defer LeaveAndClose(node, logger)
	ways := waysToServers(node, current, o.Join)
	if relays {
		port.Relay(ways)
	}
	held, err := OpenArtifacts(o.NodeOptions, me, node, current)
	if err != nil {
		return err
	}
	announceHolds(node, held.Store, me.Digest)
	pinned := func() release.KeySet { return updater.PinnedKeys(o.Data, creds.Cluster, KeysGiven(creds)) }
	puller, err := held.Puller(pinned, true, logger)
	if err != nil {
		return err
	}
	defer puller.Close()
	api := NodeAPI(node, held, puller)
	reload := o.Reloads(held, logger)
	if reload != nil {
		api.Handle("POST "+PathReload, ReloadEndpoint(reload, creds.HostID))
	}
	port.ServeHTTP(nodeport.Handlers{Peer: api})
	up, err := OpenUpdater(UpdaterSide{
		Data: o.Data, Installed: o.Trial.Binary, Place: install.Place(o.Trial.Place), Me: me, Creds: creds, Node: node, Held: held, Link: link, Spare: spareOf(o),
	}, logger)
	if err != nil {
		return err
	}

	follower := NewTrustFollower(current, node, func() {
		port.CutRefused()
		held.Client.CloseIdleConnections()
	}, logger.With("component", "trust"))
	follower.Listen()

	var tasks sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	defer tasks.Wait()
	defer stop()
	if reload != nil {
		tasks.Go(func() { OnHangup(ctx, func() { reload() }) })
	}
	tasks.Go(func() { agentRenewal(o, follower, ways, logger).Run(ctx) })
	tasks.Go(func() { follower.watch(ctx) })
	tasks.Go(func() { follower.WatchCAs(ctx) })
	shows := &Shower{Instance: NewInstance(), Peer: o.PeerAdv, Current: current, Ways: ways, denied: follower.TakeDenied, Logger: logger.With("component", "check-in")}
	tasks.Go(func() { shows.run(ctx) })
	if o.Work == nil {
		tasks.Go(func() { ComeToRest(ctx, restInterval, logger) })
	}
	tasks.Go(func() { ProveHealth(ctx, link, me, logger, o.well(node)) })
	tasks.Go(func() { HeedSupervisor(ctx, link, stop, logger) })
	running := RunningNode{Role: creds.Role, Peer: o.PeerAdv, Gossip: o.GossipAdv, Binary: o.Trial.Binary, InstallTo: install.Place(o.Trial.Place)}
	if err := running.Write(o.Data); err != nil {
		logger.Warn("say where this agent listens, for moult doctor", "error", err)
	}
	tasks.Go(func() {
		ShowLife(ctx, LinkSigns{Link: link, Logger: logger}, func() string { return agentStatus(node) })
	})
	logger.Info("agent is up", "peer", o.PeerAdv, "gossip", o.GossipAdv, "version", me.Build.Version, "trial", link.OnTrial())
	worked := o.startWork(ctx, func() {
		if err := link.Failing(); err != nil {
			logger.Error("tell the supervisor", "error", err)
		}
		stop()
	})
	err = up.Run(ctx)
	stop()
	return errors.Join(err, awaitWork(worked, logger))
}

// errWorkEnded: what the agent was to run besides itself has ended, unasked.
var errWorkEnded = errors.New("the program's own work has ended")

// startWork runs the program's own work. When it ends without being asked to, failed
// is called.
func (o *AgentOptions) startWork(ctx context.Context, failed func()) (ended <-chan error) {
	worked := make(chan error, 1)
	if o.Work == nil {
		close(worked)
		return worked
	}
	go func() {
		err := o.Work(ctx)
		if ctx.Err() != nil {
			worked <- nil // asked to stop, and how it did matters to nobody
			return
		}
		worked <- errors.Join(errWorkEnded, err)
		failed()
	}()
	return worked
}

// workStopTimeout is how long the work may take to end once it is asked to: what is
// to come, a trial perhaps, must not wait for ever. Less than the supervisor's patience.
const workStopTimeout = 8 * time.Second

func awaitWork(ended <-chan error, logger *slog.Logger) error {
	select {
	case err := <-ended:
		return err
	case <-time.After(workStopTimeout):
		logger.Warn("the program's own work does not end; leaving it", "timeout", workStopTimeout)
		return nil
	}
}

// well is when the agent is well: it is a member of the mesh, and its program's own
// work is ready.
func (o *AgentOptions) well(node *mesh.Node) func() (bool, <-chan struct{}) {
	peers := hasPeers(node)
	return func() (bool, <-chan struct{}) {
		select {
		case <-o.Ready:
			return peers()
		default:
		}
		if o.Ready == nil {
			return peers()
		}
		return false, o.Ready
	}
}

// passReloadOn has the agent reload when its supervisor gets the signal.
func passReloadOn(ctx context.Context, o AgentOptions, logger *slog.Logger) {
	if _, err := AskToReload(ctx, o.Data); err != nil { // what the file is worth is in the agent's log
		logger.Warn("reload the configuration", "error", err)
	}
}

// spareOf is how many artifacts an agent keeps for others: a relay keeps as many
// of its own fetches as of those for others, lest one drop the other's.
func spareOf(o AgentOptions) int {
	if len(o.Also) > 0 {
		return artifact.KeptByRelay
	}
	return 0 // the updater's own number
}

// agentRenewal asks servers, where they are reached, and else relays.
func agentRenewal(o AgentOptions, follower *TrustFollower, ways func([]string) []nodeport.Way, logger *slog.Logger) *Renewal {
	current := follower.current
	return &Renewal{
		Current: current, Renewed: follower.Renewed, Now: follower.Renew, Logger: logger.With("component", "renewal"),
		Ask: func(ctx context.Context) (identity.Enrolment, error) {
			var addrs []string
			for _, w := range ways(nil) {
				addrs = append(addrs, w.Addr)
			}
			return RenewAt(ctx, addrs, current.Get(), identity.RenewRequest{Also: o.SegmentAddrs()})
		},
	}
}

// AgentGate is what an agent's node port takes from members: artifacts and
// questions, and on a relay connections to pass on; nothing of removed hosts.
func AgentGate(relays bool, denied func(hostID string) bool) func(alpn string, id identity.Identity) error {
	return func(alpn string, id identity.Identity) error {
		if denied(id.HostID) {
			return identity.ErrDenied
		}
		if alpn == identity.ALPNHTTP || alpn == identity.ALPNRelay && relays {
			return nil
		}
		return fmt.Errorf("this host does not speak %s", alpn)
	}
}
