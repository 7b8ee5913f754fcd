package main

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

// runAgent is the supervisor, or in its child the agent itself.
func runAgent(ctx context.Context, o agentOptions, stdout, stderr io.Writer) error {
	if link, ok := updater.Supervised(); ok {
		return runSupervisedAgent(ctx, o, link, stderr)
	}
	logger := newLogger(o.nodeOptions, stderr).With("host", o.name)
	if o.reread != nil {
		go onHangup(ctx, func() { passReloadOn(ctx, o, logger) }) // from the start: SIGHUP would end the process
	}
	service := newServiceManager(ctx, logger)
	defer service.close()
	service.Well(joinPatience)
	if err := checkBinary(o.trial.binary, o.anyDataPath); err != nil {
		return err
	}
	unlock, err := openDataDir(o.data, o.anyDataPath)
	if err != nil {
		return err
	}
	defer unlock()
	active := o.trial.beginActive(o.data, o.build, logger)
	// Joining needs no trial, and its errors are for the person who typed the
	// command: done here, not in a child that would be restarted over them.
	ids, err := identity.OpenStore(filepath.Join(o.data, "identity"))
	if err != nil {
		return err
	}
	if err := o.findAddresses(ids); err != nil {
		return err
	}
	creds, err := enrol(ctx, ids, o.nodeOptions, "", nil)
	if err != nil {
		return err
	}
	if creds.Role != identity.RoleAgent {
		return fmt.Errorf("%s belongs to a server; run `moult server` on it, or give another --data", o.data)
	}
	current := identity.NewCurrent(ids, creds)
	if err := awaitSegmentKeys(ctx, o.nodeOptions, current, agentAsk(o.nodeOptions, current), logger); err != nil {
		return err
	}
	supervisor := o.trial.supervisor(o.data, active, stderr, logger, service)
	supervisor.Restart = o.restart
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
func runSupervisedAgent(ctx context.Context, o agentOptions, link *updater.SupervisorLink, stderr io.Writer) error {
	logger := newLogger(o.nodeOptions, stderr).With("host", o.name)
	ids, err := identity.OpenStore(filepath.Join(o.data, "identity"))
	if err != nil {
		return err
	}
	if err := o.findAddresses(ids); err != nil {
		return err
	}
	creds, err := ids.Load()
	if err != nil {
		return err
	}
	current := identity.NewCurrent(ids, creds)
	me, err := describeSelf(o.data, o.build)
	if err != nil {
		return err
	}
	relays := len(o.also) > 0
	port, err := nodeport.Listen(o.peer, func() (identity.Credentials, bool) { return current.Get(), true }, agentGate(relays, creds.Denials.Host), logger.With("component", "nodeport"), nodeport.HostsPerAddress(o.serve.hosts), nodeport.AllowFrom(o.networks))
	if err != nil {
		return err
	}
	defer closeWithin(port.Close, logger, "node port")
	pools, err := o.pools(creds)
	if err != nil {
		return err
	}
	seeds := newSeedFinder(current, o.join, logger.With("component", "seeds"))
	node, err := mesh.Start(ctx, mesh.Config{
		Identity: creds.Identity, Key: creds.Key, CertDER: creds.CertDER(), Verifier: creds.Verifier(), Boot: me.boot,
		OS: runtime.GOOS, Arch: runtime.GOARCH, Version: me.build.version, Digest: me.digest, PeerAddr: o.peerAdv,
		HostsPerAddress: o.serve.hosts,
		Pools:           pools, FindSeeds: seeds.find, Denied: creds.Denials.Host, Logger: logger.With("component", "mesh"),
	})
	if err != nil {
		return err
	}
	defer leaveAndClose(node, logger)
	ways := waysToServers(node, current, o.join)
	if relays {
		port.Relay(ways)
	}
	held, err := openArtifacts(o.nodeOptions, me, node, current)
	if err != nil {
		return err
	}
	announceHolds(node, held.store, me.digest)
	pinned := func() release.KeySet { return updater.PinnedKeys(o.data, creds.Cluster, keysGiven(creds)) }
	puller, err := held.puller(pinned, true, logger)
	if err != nil {
		return err
	}
	defer puller.Close()
	api := nodeAPI(node, held, puller)
	reload := o.reloads(held, logger)
	if reload != nil {
		api.Handle("POST "+pathReload, reloadEndpoint(reload, creds.HostID))
	}
	port.ServeHTTP(nodeport.Handlers{Peer: api})
	up, err := openUpdater(updaterSide{
		data: o.data, installed: o.trial.binary, place: install.Place(o.trial.place), me: me, creds: creds, node: node, held: held, link: link, spare: spareOf(o),
	}, logger)
	if err != nil {
		return err
	}

	follower := newTrustFollower(current, node, func() {
		port.CutRefused()
		held.client.CloseIdleConnections()
	}, logger.With("component", "trust"))
	follower.listen()

	var tasks sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	defer tasks.Wait()
	defer stop()
	if reload != nil {
		tasks.Go(func() { onHangup(ctx, func() { reload() }) })
	}
	tasks.Go(func() { agentRenewal(o, follower, ways, logger).run(ctx) })
	tasks.Go(func() { follower.watch(ctx) })
	tasks.Go(func() { follower.watchCAs(ctx) })
	shows := &shower{instance: newInstance(), peer: o.peerAdv, current: current, ways: ways, denied: follower.takeDenied, logger: logger.With("component", "check-in")}
	tasks.Go(func() { shows.run(ctx) })
	tasks.Go(func() { proveHealth(ctx, link, me, logger, o.well(node)) })
	tasks.Go(func() { heedSupervisor(ctx, link, stop, logger) })
	running := runningNode{Role: creds.Role, Peer: o.peerAdv, Gossip: o.gossipAdv, Binary: o.trial.binary, InstallTo: install.Place(o.trial.place)}
	if err := running.write(o.data); err != nil {
		logger.Warn("say where this agent listens, for moult doctor", "error", err)
	}
	tasks.Go(func() {
		showLife(ctx, linkSigns{link: link, logger: logger}, func() string { return agentStatus(node) })
	})
	logger.Info("agent is up", "peer", o.peerAdv, "gossip", o.gossipAdv, "version", me.build.version, "trial", link.OnTrial())
	worked := o.startWork(ctx, stop)
	err = up.Run(ctx)
	stop()
	return errors.Join(err, awaitWork(worked, logger))
}

// errWorkEnded: what the agent was to run besides itself has ended, unasked.
var errWorkEnded = errors.New("the program's own work has ended")

// startWork runs the program's own work. Its end stops the agent.
func (o *agentOptions) startWork(ctx context.Context, stop func()) (ended <-chan error) {
	worked := make(chan error, 1)
	if o.work == nil {
		close(worked)
		return worked
	}
	go func() {
		err := o.work(ctx)
		if ctx.Err() == nil {
			err = errors.Join(errWorkEnded, err)
		} else {
			err = nil // asked to stop, and how it did matters to nobody
		}
		worked <- err
		stop()
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
func (o *agentOptions) well(node *mesh.Node) func() (bool, <-chan struct{}) {
	peers := hasPeers(node)
	return func() (bool, <-chan struct{}) {
		select {
		case <-o.ready:
			return peers()
		default:
		}
		if o.ready == nil {
			return peers()
		}
		return false, o.ready
	}
}

// passReloadOn has the agent reload when its supervisor gets the signal.
func passReloadOn(ctx context.Context, o agentOptions, logger *slog.Logger) {
	if _, err := askToReload(ctx, o.data); err != nil { // what the file is worth is in the agent's log
		logger.Warn("reload the configuration", "error", err)
	}
}

// spareOf is how many artifacts an agent keeps for others: a relay keeps as many
// of its own fetches as of those for others, lest one drop the other's.
func spareOf(o agentOptions) int {
	if len(o.also) > 0 {
		return artifact.KeptByRelay
	}
	return 0 // the updater's own number
}

// agentRenewal asks servers, where they are reached, and else relays.
func agentRenewal(o agentOptions, follower *trustFollower, ways func([]string) []nodeport.Way, logger *slog.Logger) *renewal {
	current := follower.current
	return &renewal{
		current: current, renewed: follower.renewed, now: follower.renew, logger: logger.With("component", "renewal"),
		ask: func(ctx context.Context) (identity.Enrolment, error) {
			var addrs []string
			for _, w := range ways(nil) {
				addrs = append(addrs, w.Addr)
			}
			return renewAt(ctx, addrs, current.Get(), identity.RenewRequest{Also: o.segmentAddrs()})
		},
	}
}

// agentGate is what an agent's node port takes from members: artifacts and
// questions, and on a relay connections to pass on; nothing of removed hosts.
func agentGate(relays bool, denied func(hostID string) bool) func(alpn string, id identity.Identity) error {
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
