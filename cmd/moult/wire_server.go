package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/coordinator"
	"moult/consensus/fleet"
	"moult/consensus/notifier"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
	"moult/updater"
	"moult/updater/install"
	"moult/webui"
	"moult/webui/telemetry"
)

// runServer is a server: one process, so that whatever stops or kills it hits all
// of it. Only while a new binary is tried it is that one's supervisor, and then
// becomes what is installed in the end.
func runServer(ctx context.Context, o serverOptions, stdout, stderr io.Writer) error {
	makeFilesPrivate()
	if link, onTrial := updater.Supervised(); onTrial {
		return runLockedServer(ctx, o, link, nil, stdout, stderr)
	}
	logger := nodekit.NewLogger(o.NodeOptions, stderr).With("server", o.Name)
	service := nodekit.NewServiceManager(ctx, logger)
	defer service.Close()
	service.Well(nodekit.JoinPatience)
	if err := nodekit.CheckBinary(o.trial.Binary, o.AnyDataPath); err != nil {
		return err
	}
	unlock, err := nodekit.OpenDataDir(o.Data, o.AnyDataPath)
	if err != nil {
		return err
	}
	defer unlock()
	active := o.trial.BeginActive(o.Data, o.Build, logger)
	go updater.ReapOrphans(ctx) // to the end of the process
	trial := o.trial.Supervisor(o.Data, active, stderr, logger, service)
	if err := updater.SettleTrial(trial); err != nil {
		return err
	}
	if err := runLockedServer(ctx, o, nil, service, stdout, stderr); !errors.Is(err, updater.ErrRestart) {
		return err
	}
	if _, err := updater.RunTrial(ctx, trial); err != nil {
		logger.Error("try the new binary", "error", err)
	}
	if ctx.Err() != nil {
		return nil
	}
	return updater.ReplaceSelf(o.trial.Binary)
}

// runLockedServer is the server process, on a data directory that is locked:
//
//	          UI and API (--http)                 node port (--peer, TLS)
//	                │                      raft │   http │    join │
//	             webui ── propose ──▶ consensus ◀─┘        │         │
//	                │                    │ leads           │         │
//	                │                    ├──▶ notifier ── alerts ──▶ webhooks
//	                │                    ▼                 │         │
//	             observer ──────▶ coordinator ── orders ─┐ │         │
//	                ▲                                    ▼ ▼         │
//	             roster ◀── mesh (--gossip) ◀── reports, records     │
//	                                                                 │
//	artifact store ◀── publisher, puller, fetches      CA: enrolment ┘
//
// Closed last in, first out: first what takes requests, then the coordinator,
// the notifier and Raft (which hands leadership over), then the mesh, then the node port.
//
// It ends with updater.ErrRestart when a trial is staged.
func runLockedServer(ctx context.Context, o serverOptions, link *updater.SupervisorLink, service *nodekit.ServiceManager, stdout, stderr io.Writer) error {
	logger := nodekit.NewLogger(o.NodeOptions, stderr).With("server", o.Name)
	httpListener, err := net.Listen("tcp", o.http)
	if err != nil {
		return fmt.Errorf("listen for the UI: %w; give a free address with --http", err)
	}
	defer httpListener.Close()

	// Who am I.
	ids, err := identity.OpenStore(filepath.Join(o.Data, "identity"))
	if err != nil {
		return err
	}
	if err := o.FindAddresses(ids); err != nil {
		return err
	}
	o.listenHTTP, o.http = o.http, advertisedHTTP(o, httpListener)
	var bootstrap func(string) error
	if o.bootstrap || fileExists(filepath.Join(o.Data, nodekit.BootstrapOnceFile)) {
		bootstrap = func(hostID string) error { return bootstrapCluster(ids, o, hostID, stdout) }
	}
	creds, err := nodekit.Enrol(ctx, ids, o.NodeOptions, o.http, bootstrap)
	if err != nil {
		return err
	}
	if creds.Role != identity.RoleServer {
		return fmt.Errorf("%s belongs to an agent; run `moult agent` on it, or give another --data", o.Data)
	}
	current := identity.NewCurrent(ids, creds)
	me, err := nodekit.DescribeSelf(o.Data, o.Build, link)
	if err != nil {
		return err
	}
	gate := &memberGate{denied: creds.Denials.Host}
	port, err := nodeport.Listen(o.Peer, func() (identity.Credentials, bool) { return current.Get(), true }, gate.allow, logger.With("component", "nodeport"), nodeport.HostsPerAddress(o.Serve.Hosts), nodeport.AllowFrom(o.Networks))
	if err != nil {
		return err
	}
	defer nodekit.CloseWithin(port.Close, logger, "node port")

	// What was decided. Raft counts from its start, so what takes its numbers is first.
	libraries := telemetry.NewLibraries()
	if err := libraries.Install(); err != nil {
		return err
	}
	others := newServerClient(current.Get, o.raft.statusTimeout())
	// Half of what the coordinator waits for a server in one phase.
	forgeries := newForgeryWatch()
	members := &membership{servers: others, self: creds.HostID, patience: o.timeouts.Rejoin / 2, forgeries: forgeries}
	clock := newClockGuard(members.otherClocks, logger.With("component", "clock"))
	raft, err := openRaft(o, creds.HostID, port, current, others, clock.unfit, logger.With("component", "raft"))
	if err != nil {
		return err
	}
	defer nodekit.CloseWithin(raft.Close, logger, "raft")
	members.raft = raft
	gate.open(raft)
	creds.Trusted.SetMembers(enrolledKey(raft))

	// Who is here.
	enrolment := &enrolment{raft: raft, lifetime: o.certLifetime, logger: logger.With("component", "enrolment")}
	ask := serverAsk(o, raft, enrolment, current)
	if err := nodekit.AwaitSegmentKeys(ctx, o.NodeOptions, current, ask, logger); err != nil {
		return err
	}
	creds = current.Get()
	pools, err := o.Pools(creds)
	if err != nil {
		return err
	}
	hosts := raft.State().View().Hosts()
	for i, p := range pools {
		pools[i].Join = gossipSeeds(hosts, creds.HostID, p.Segment, p.Join, 0)
	}
	// Right after a start the state may not have been read, nor the enrolment of the
	// first server name anybody: the Raft group does.
	seeds := nodekit.NewSeedFinder(current, otherServers(o, raft, creds), logger.With("component", "seeds"))
	node, err := mesh.Start(ctx, mesh.Config{
		Identity: creds.Identity, Key: creds.Key, CertDER: creds.CertDER(), Verifier: creds.Verifier(), Boot: me.Boot,
		OS: runtime.GOOS, Arch: runtime.GOARCH, Version: me.Build.Version, Digest: me.Digest, PeerAddr: o.PeerAdv,
		Pools: pools, FindSeeds: seedsWhileAlone(raft, creds.HostID, seeds.Find),
		HostsPerAddress: o.Serve.Hosts,
		KeyOf:           enrolledKey(raft), RoleOf: enrolledRole(raft), Denied: creds.Denials.Host,
		Logger: logger.With("component", "mesh"),
	})
	if err != nil {
		return err
	}
	defer nodekit.LeaveAndClose(node, logger)
	observer, started := newObserver(node.Roster()), time.Now()
	inbox := &reportInbox{node: node, raft: raft, observer: observer, logger: logger.With("component", "reports")}
	node.Handle(nodekit.TopicReport, inbox.handle)
	keys := &keyDistributor{raft: raft, roster: node.Roster(), send: node.Send, logger: logger.With("component", "release-keys"), follows: map[string]uint64{}}
	node.Handle(nodekit.TopicKeysFollowed, keys.handle)
	follower := nodekit.NewTrustFollower(current, node, port.CutRefused, logger.With("component", "trust"))
	follower.Listen()
	trust := &trustKeeper{
		raft: raft, roster: node.Roster(), current: current, lifetime: o.certLifetime, send: node.Send, own: follower,
		logger: logger.With("component", "trust"), follows: map[string]nodekit.TrustFollowed{}, behind: make(chan struct{}, 1),
	}
	node.Handle(nodekit.TopicTrustFollowed, trust.handle)

	// What is served.
	held, err := nodekit.OpenArtifacts(o.NodeOptions, me, node, current)
	if err != nil {
		return err
	}
	publisher := &publisher{raft: raft, store: held.Store, servers: others, anyone: held.Client, self: creds.HostID, peer: o.PeerAdv, limiter: held.Limiter, logger: logger.With("component", "publisher")}
	puller, err := held.Puller(publisher.releaseKeys, false, logger)
	if err != nil {
		return err
	}
	defer puller.Close()
	health := &healthWatch{raft: raft, roster: node.Roster(), store: held.Store, others: others, current: current, self: creds.HostID, started: started}
	members.health = health
	up, err := nodekit.OpenUpdater(nodekit.UpdaterSide{
		Data: o.Data, Installed: o.trial.Binary, Place: install.Place(o.trial.Place), Me: me, Creds: creds, Node: node, Held: held, Link: link,
		Spare: keepAllArtifacts, MayRestart: members.mayRestart,
	}, logger)
	if err != nil {
		return err
	}
	api := nodekit.NodeAPI(node, held, puller)
	desk := newCheckInDesk(raft, others, creds.HostID, trust.listAfter, logger.With("component", "check-ins"))
	addServerAPI(api, raft, members, publisher, desk)
	reload := o.Reloads(held, logger)
	if reload != nil {
		api.Handle("POST "+nodekit.PathReload, nodekit.ReloadEndpoint(reload, creds.HostID))
	}
	enrolment.roster, enrolment.denyList = node.Roster(), trust.newestList
	port.ServeHTTP(nodeport.Handlers{Peer: gate.onlyHosts(api), Join: webui.FromClients(identity.ChainHandler(identity.JoinHandler(enrolment.enrol), trust.chain)), Renew: identity.CheckInHandler(identity.RenewHandler(enrolment.renew), desk.take)})

	if err := joinRaft(ctx, o, raft, others, creds, logger); err != nil {
		return err
	}
	webhooks := notifier.NewClient(version)
	jobs := telemetry.NewJobs(raft.View, time.Now())
	tlsOn := o.tls.on(o.listenHTTP)
	var uiTLS *tls.Config
	if tlsOn {
		certificate, err := o.certificate(raft.View, logger.With("component", "webui"))
		if err != nil {
			return err
		}
		if _, err := certificate(nil); err != nil { // the state is behind; the first who asks has it made
			logger.Info("the UI has no certificate yet", "error", err)
		}
		uiTLS = uiTLSConfig(certificate)
	}
	ui, err := webui.New(webui.Config{
		Version: version, Commit: commit,
		View: func() fleet.View { return raft.State().View() }, Subscribe: raft.State().Subscribe,
		Proposer: raft, Started: started, Observed: observer.observed, Changed: observer.Changed,
		Servers: members, Publisher: publisher, Trust: trust, CAs: trust, FollowedKeys: keys.followed, Binaries: &binaries{raft: raft, store: held.Store, self: me}, Backups: &backups{store: held.Store, server: o.Name},
		Webhooks: &webhookTester{raft: raft, client: webhooks},
		Problems: health.problems, ProblemCodes: problemCodes, CatchUp: raft.CatchUp,
		Metrics: []prometheus.Collector{libraries, jobs, serverNumbers{raft, node, held.Store, held.Served}},
		HSTS:    o.tls.certFile != "",
		Logger:  logger.With("component", "webui"),
	})
	if err != nil {
		return err
	}

	// From here on things run.
	var tasks sync.WaitGroup
	ctx, stop := context.WithCancelCause(ctx)
	defer tasks.Wait()
	defer stop(nil)
	if reload != nil {
		tasks.Go(func() { nodekit.OnHangup(ctx, func() { reload() }) })
	}
	tasks.Go(func() { clock.run(ctx) })
	tasks.Go(func() { observer.run(ctx) })
	tasks.Go(func() { health.run(ctx) })
	tasks.Go(func() {
		if err := up.Run(ctx); err != nil {
			stop(err)
		}
	})
	if link != nil {
		tasks.Go(func() { nodekit.HeedSupervisor(ctx, link, func() { stop(nil) }, logger) })
		tasks.Go(func() { nodekit.ProveHealth(ctx, link, me, logger, serverIsWell(raft, node)) })
	}
	tasks.Go(func() {
		(&nodekit.Renewal{Current: current, Ask: ask, Renewed: follower.Renewed, Now: follower.Renew, Logger: logger.With("component", "renewal")}).Run(ctx)
	})
	tasks.Go(func() {
		events, end := raft.Subscribe()
		defer end()
		jobs.Run(ctx, events)
	})
	tasks.Go(func() { keys.run(ctx) })
	tasks.Go(func() { trust.run(ctx) })
	tasks.Go(func() { follower.WatchCAs(ctx) })
	tasks.Go(func() { desk.run(ctx) })
	tasks.Go(func() { forgeries.run(ctx, o.Name, node, raft.Propose, logger.With("component", "forgeries")) })
	tasks.Go(func() {
		raft.Lead(ctx, func(ctx context.Context) { forgeries.lead(ctx, members, logger.With("component", "forgeries")) })
	})
	tasks.Go(func() { raft.Lead(ctx, func(ctx context.Context) { desk.lead(ctx, node.Roster()) }) })
	tasks.Go(func() { raft.Lead(ctx, newRotor(trust, logger.With("component", "trust")).run) })
	tasks.Go(func() { publisher.keepUp(ctx, held.Peers.Holders) })
	patches := &patchMaker{state: raft.State(), artifacts: held.Store, patches: held.Patches, members: node.Roster().Members, logger: logger.With("component", "patches")}
	tasks.Go(func() { raft.Lead(ctx, patches.run) })
	keeper := &addressKeeper{
		raft: raft, others: others, servers: append(slices.Clone(creds.Servers), o.Join...), logger: logger.With("component", "membership"),
		self: fleet.Host{ID: creds.HostID, GossipAddr: o.GossipAdv, PeerAddr: o.PeerAdv, HTTPAddr: o.http, HTTPTLS: tlsOn},
	}
	tasks.Go(func() { keeper.run(ctx) })
	tasks.Go(func() {
		raft.Lead(ctx, func(ctx context.Context) {
			err := coordinator.Run(ctx, coordinator.Config{
				Log: raft, Roster: observer, Timeouts: o.timeouts.Timeouts, StageWait: o.timeouts.stage, Unreachable: coordinator.UnreachablePolicy(o.unreachable),
				Orders: &orderSender{node: node, raft: raft, creds: current.Get},
				Self:   creds.HostID, Servers: members,
				Logger: logger.With("component", "coordinator"),
			})
			if err != nil && ctx.Err() == nil {
				logger.Error("coordinator", "error", err)
			}
		})
	})
	tasks.Go(func() {
		raft.Lead(ctx, func(ctx context.Context) {
			newStager(raft, node, &orderSender{node: node, raft: raft, creds: current.Get}, patches.awaited, observer.staging, logger.With("component", "stager")).run(ctx)
		})
	})
	tasks.Go(func() {
		raft.Lead(ctx, func(ctx context.Context) { // its own: a slow receiver concerns no update
			err := notifier.Run(ctx, notifier.Config{Log: raft, Sender: webhooks, Logger: logger.With("component", "notifier")})
			if err != nil && ctx.Err() == nil {
				logger.Error("notifier", "error", err)
			}
		})
	})
	running := nodekit.RunningNode{Role: creds.Role, Peer: o.PeerAdv, Gossip: o.GossipAdv, HTTP: o.http, Binary: o.trial.Binary, InstallTo: install.Place(o.trial.Place)}
	if err := running.Write(o.Data); err != nil {
		logger.Warn("say where this server listens, for moult doctor", "error", err)
	}
	var signs nodekit.LifeSigns = service
	if link != nil {
		signs = nodekit.LinkSigns{Link: link, Logger: logger}
	}
	tasks.Go(func() { nodekit.ShowLife(ctx, signs, func() string { return serverStatus(raft, node) }) })
	logger.Info("server is up", "ui", uiURL(tlsOn, o.http), "peer", o.PeerAdv, "gossip", o.GossipAdv, "version", version, "trial", link != nil)
	err = serveHTTP(ctx, httpListener, uiLimits(o.Serve.Hosts), ui, uiTLS, logger.With("component", "webui"))
	if errors.Is(context.Cause(ctx), updater.ErrRestart) {
		return updater.ErrRestart
	}
	return err
}

// keepAllArtifacts is the updater's spare artifacts on a server: the publisher knows
// which ones are released and deletes the others.
const keepAllArtifacts = -1

// serverIsWell is when a new binary has proved itself as a server: it has caught up
// with a leader or leads itself, and where there are other servers a live peer has
// answered it in the mesh.
func serverIsWell(raft *consensus.Node, node *mesh.Node) func() (bool, <-chan struct{}) {
	return func() (bool, <-chan struct{}) {
		if raft.Ready() == nil && (len(raft.Servers()) == 1 || node.LivePeers() > 0) {
			return true, nil
		}
		again := make(chan struct{})
		time.AfterFunc(100*time.Millisecond, func() { close(again) })
		return false, again
	}
}

// serverAsk renews by this server's own state; where that is not caught up, most
// likely because its certificate has expired, at another server.
func serverAsk(o serverOptions, raft *consensus.Node, e *enrolment, current *identity.Current) func(ctx context.Context) (identity.Enrolment, error) {
	return func(ctx context.Context) (identity.Enrolment, error) {
		creds, req := current.Get(), identity.RenewRequest{Also: o.SegmentAddrs()}
		answer, err := e.renewFor(ctx, creds.HostID, publicKey(creds.Key), req)
		if err == nil {
			return answer, nil
		}
		addrs := otherServers(o, raft, creds)
		if len(addrs) == 0 {
			return answer, err
		}
		return nodekit.RenewAt(ctx, addrs, creds, req)
	}
}

// otherServers are the node ports of servers that this one knows of by its
// configuration, its enrolment and the Raft group.
func otherServers(o serverOptions, raft *consensus.Node, creds identity.Credentials) []string {
	addrs := slices.Concat(o.Join, creds.Servers)
	for _, s := range raft.Servers() {
		addrs = append(addrs, s.Address)
	}
	slices.Sort(addrs)
	return slices.DeleteFunc(slices.Compact(addrs), func(a string) bool { return a == o.PeerAdv })
}

// advertisedHTTP is the UI address as others see it.
func advertisedHTTP(o serverOptions, l net.Listener) string {
	if addr, err := o.Advertised(l.Addr().String()); err == nil {
		return addr
	}
	return l.Addr().String()
}
