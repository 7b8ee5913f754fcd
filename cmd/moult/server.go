package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"moult/consensus"
	"moult/consensus/coordinator"
	"moult/mesh/identity"
)

// nodeOptions are what a server and an agent have in common.
type nodeOptions struct {
	build             buildInfo // of this program
	data, name        string
	anyDataPath       bool
	gossip, peer      string
	advertise         string
	join              []string
	token, tokenFile  string
	logJSON, logDebug bool
	json              bool
	level             *slog.LevelVar // of the log; follows logDebug when settings are reloaded
	// reread has the configuration read again, and apply take over what can change;
	// nil: there is none to read.
	reread             func(apply func(nodeOptions), logger *slog.Logger) func() reloadReport
	logJournal         bool
	segment            string
	alsoFlags          []string
	allowFrom          []string
	networks           []netip.Prefix // computed from allowFrom
	also               []alsoSegment  // computed from alsoFlags
	serve              serveLimits
	toward             []string // computed: node ports of servers; the way there gives this host's address
	gossipAdv, peerAdv string   // computed: what others dial
}

// The addresses that hosts listen on when nothing else is said.
const (
	defaultGossipAddr = "0.0.0.0:7946"
	defaultPeerAddr   = "0.0.0.0:7947"
)

func (o *nodeOptions) register(cmd *cobra.Command) {
	o.registerPlace(cmd)
	o.level = new(slog.LevelVar)
	f := cmd.Flags()
	f.StringArrayVar(&o.alsoFlags, "also-segment", nil, "further segment that this host is in, as SEGMENT=GOSSIP_ADDRESS; it relays between its segments; may be repeated")
	f.StringSliceVar(&o.allowFrom, "allow-from", nil, "networks, in CIDR notation, that may reach the gossip and node ports; this host's own addresses always may; may be repeated (default: all)")
	f.StringArrayVar(&o.join, "join", nil, "node port of a server, or of a relay, to join through; may be repeated")
	f.BoolVar(&o.anyDataPath, "any-data-path", false, "take --data and --binary although others could exchange them by the permissions of their parents")
	f.StringVar(&o.token, "token", "", "join token (better: --token-file or MOULT_TOKEN, the process list does not show them)")
	f.StringVar(&o.tokenFile, "token-file", "", "file that holds the join token")
	o.serve.register(f)
	f.BoolVar(&o.logJSON, "log-json", false, "log JSON lines")
	f.BoolVar(&o.logJournal, "log-journal", false, "log lines as systemd's journal takes them: a priority before each, no time (default: where stderr is the journal)")
	f.BoolVar(&o.logDebug, "log-debug", false, "log more")
}

// registerPlace registers the flags that say which host this is, and where.
func (o *nodeOptions) registerPlace(cmd *cobra.Command) {
	host, _ := os.Hostname()
	f := cmd.Flags()
	f.StringVar(&o.data, "data", defaultDataDir, "data directory")
	f.StringVar(&o.name, "name", host, "name of this host, unique in the cluster (default: the system's host name)")
	f.Lookup("name").DefValue = "" // the documentation is not of the machine that it was made on
	f.StringVar(&o.gossip, "gossip", defaultGossipAddr, "gossip address (UDP and TCP)")
	f.StringVar(&o.peer, "peer", defaultPeerAddr, "node port: Raft, artifacts and joining, mutual TLS (TCP)")
	f.StringVar(&o.advertise, "advertise", "", "IP address that others reach this host at (default: found out)")
}

func (o *nodeOptions) validate() error {
	errs := []error{o.validatePlace(), o.readSegments(), o.checkReach(), o.readNetworks(), o.serve.validate()}
	if o.token != "" && o.tokenFile != "" {
		errs = append(errs, errors.New("--token and --token-file are both given; give one"))
	}
	return errors.Join(errs...)
}

// readNetworks takes the --allow-from flags apart.
func (o *nodeOptions) readNetworks() error {
	o.networks = nil
	var errs []error
	for _, text := range o.allowFrom {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("--allow-from %q: give a network as ADDRESS/BITS, such as 10.1.0.0/16, or one host as 10.1.0.5/32", text))
			continue
		}
		o.networks = append(o.networks, n.Masked())
	}
	return errors.Join(errs...)
}

// allowed are the networks whose members may gossip with this host at an address of
// its own; nil: all.
func (o *nodeOptions) allowed(own string) (cidrs []string) {
	if len(o.networks) == 0 {
		return nil
	}
	for _, n := range o.networks {
		cidrs = append(cidrs, n.String())
	}
	if host, _, err := net.SplitHostPort(own); err == nil {
		if ip, err := netip.ParseAddr(host); err == nil {
			cidrs = append(cidrs, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()).String())
		}
	}
	return cidrs
}

func (o *nodeOptions) validatePlace() error {
	var errs []error
	if o.name == "" {
		errs = append(errs, errors.New("--name is empty; give a name that is unique in the cluster"))
	}
	if o.data == "" {
		errs = append(errs, errors.New("--data is empty; give a directory"))
	}
	for _, a := range []struct{ flag, addr string }{{"--gossip", o.gossip}, {"--peer", o.peer}} {
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: give HOST:PORT", a.flag, a.addr))
		}
	}
	return errors.Join(errs...)
}

// findAddresses finds out what others dial: on the way to where it joins and to
// those that it knows from the last time, unless --advertise says it.
func (o *nodeOptions) findAddresses(ids *identity.Store) error {
	creds, _ := ids.Load() // an error is told by whoever needs the credentials
	o.toward = slices.Concat(o.join, creds.GossipJoin, creds.Servers)
	var err error
	if o.gossipAdv, err = o.advertised(o.gossip); err != nil {
		return fmt.Errorf("--gossip: %w", err)
	}
	if o.peerAdv, err = o.advertised(o.peer); err != nil {
		return fmt.Errorf("--peer: %w", err)
	}
	return o.findSegmentAddresses(creds)
}

// advertised returns the address that others dial for one that we listen on.
func (o *nodeOptions) advertised(listen string) (string, error) {
	return advertisedFor(listen, o.advertise, o.toward)
}

// advertisedFor is ip with the port of listen; without one, what listen says
// itself, and where that stands for all addresses, the one on the way to the first
// host that there is a way to.
func advertisedFor(listen, ip string, toward []string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("%q: give HOST:PORT", listen)
	}
	if ip != "" {
		return net.JoinHostPort(ip, port), nil
	}
	if !unspecified(host) {
		return listen, nil
	}
	if len(toward) == 0 {
		toward = []string{"192.0.2.1:9"} // documentation address: nothing is sent, the kernel only chooses a source
	}
	var errs []error
	for _, addr := range toward {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer conn.Close()
		return net.JoinHostPort(conn.LocalAddr().(*net.UDPAddr).IP.String(), port), nil
	}
	return "", fmt.Errorf("find out this host's address: %w; give it with --advertise", errors.Join(errs...))
}

// checkPorts finds out whether the addresses can be listened on before anything
// is made or a join token is used up. Only then: an agent's supervisor may start
// anew beside its running child, which has them.
func (o *nodeOptions) checkPorts() error {
	peer, err := net.Listen("tcp", o.peer)
	if err != nil {
		return fmt.Errorf("the node port cannot be listened on: %w; give a free address with --peer", err)
	}
	defer peer.Close()
	if err := checkGossipPort(o.gossip); err != nil {
		return fmt.Errorf("the gossip port cannot be listened on: %w; give a free address with --gossip", err)
	}
	for _, s := range o.also {
		if err := checkGossipPort(s.listen); err != nil {
			return fmt.Errorf("the gossip port of segment %s cannot be listened on: %w; give a free address with --also-segment", s.name, err)
		}
	}
	return nil
}

func checkGossipPort(addr string) error {
	gossip, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer gossip.Close()
	packets, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	return packets.Close()
}

// joinTokenFile is where a join token may lie in the data directory: whoever
// prepares a service leaves it there, and joining removes it.
const joinTokenFile = "join.token"

// joinToken returns the token given, else the one that was left in the data
// directory, "" when there is none.
func (o *nodeOptions) joinToken() (string, error) {
	if o.tokenFile == "" && o.token == "" {
		b, err := os.ReadFile(filepath.Join(o.data, joinTokenFile))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("read the join token: %w", err)
		}
		return strings.TrimSpace(string(b)), nil
	}
	if o.tokenFile == "" {
		return strings.TrimSpace(o.token), nil
	}
	b, err := os.ReadFile(o.tokenFile)
	if err != nil {
		return "", fmt.Errorf("read --token-file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

type serverOptions struct {
	nodeOptions
	http             string // as others reach it, once it listens
	listenHTTP       string // computed: where it listens
	tls              uiTLS
	bootstrap        bool
	keepPassword     bool
	releaseKeyFile   []string
	certLifetime     time.Duration
	timeouts         coordinatorTimeouts
	raft             raftTimes
	unreachable      string
	releaseThreshold int
	snapshots        consensus.Snapshots
	trial            trialOptions
}

func newServerCommand() *cobra.Command {
	cmd := serverCommand(new(serverOptions))
	cmd.AddCommand(newServerBackupCommand(), newServerRestoreCommand(), newServerRecoverCommand())
	return cmd
}

// serverCommand is the command that fills o, without those below it.
func serverCommand(o *serverOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a server: it holds what was decided and may coordinate",
		Long: `Run a server. The first one makes the cluster with --bootstrap; further ones join
with a token from "moult token create --role server". Three or five make a cluster
that survives the loss of one or two. Once it has joined, a server needs neither
--bootstrap nor --join nor --token; giving them again changes nothing.

At bootstrap the server prints the login of the first admin, who chooses another
password at the first sign-in, and leaves in the data directory: admin.token (an API token), admin.password and, unless --release-key
named a public key, release.key (the key that signs releases). Take them away.`,
		Example: `  moult server --data /var/lib/moult --name s1 --bootstrap --release-key release.key.pub
  moult server --data /var/lib/moult --name s2 --join 10.0.0.1:7947 --token-file token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.reread = rereading(cmd, func() (*cobra.Command, *nodeOptions, func() error) {
				fresh := new(serverOptions)
				return serverCommand(fresh), &fresh.nodeOptions, fresh.validate
			})
			if err := o.validate(); err != nil {
				return placed(cmd, err)
			}
			o.build = thisBuild()
			return runServer(cmd.Context(), *o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.registerFlags(cmd)
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON; the log is JSON lines too")
	return cmd
}

func (o *serverOptions) registerFlags(cmd *cobra.Command) {
	o.register(cmd)
	cmd.Flags().StringVar(&o.http, "http", defaultAddr, "address of the UI and the API")
	o.tls.register(cmd)
	cmd.Flags().BoolVar(&o.bootstrap, "bootstrap", false, "make a new cluster, if this data directory holds none")
	cmd.Flags().BoolVar(&o.keepPassword, "keep-first-password", false, "at bootstrap: the first admin may keep the password that is printed, for clusters to try out")
	cmd.Flags().IntVar(&o.releaseThreshold, "release-threshold", 1, "at bootstrap: how many of the release keys have to sign what hosts install")
	cmd.Flags().StringArrayVar(&o.releaseKeyFile, "release-key", nil, "at bootstrap: file with a public key that may sign releases; may be repeated")
	cmd.Flags().DurationVar(&o.certLifetime, "certificate-lifetime", defaultCertificateLifetime, "how long the certificates are good that this server issues; hosts renew them at two thirds of it")
	o.timeouts.register(cmd)
	d := consensus.DefaultSnapshots
	cmd.Flags().Uint64Var(&o.snapshots.Threshold, "snapshot-entries", d.Threshold, "log entries since the last snapshot of the state that make the next one due")
	cmd.Flags().Uint64Var(&o.snapshots.Trailing, "snapshot-trailing", d.Trailing, "log entries kept behind a snapshot; a server that lacks older ones gets the snapshot")
	cmd.Flags().DurationVar(&o.snapshots.Interval, "snapshot-interval", d.Interval, "how often to look whether a snapshot is due")
	o.raft.register(cmd)
	o.trial.register(cmd.Flags())
	cmd.Flags().StringVar(&o.unreachable, "unreachable", string(coordinator.UnreachableIsOffline), fmt.Sprintf(
		"what a fleet update makes of a host whose segment no relay reaches: offline, or wait (%v, then as offline)", coordinator.UnreachableWait))
}

func (o *serverOptions) validate() error {
	errs := []error{o.nodeOptions.validate(), o.validateHTTP(), o.tls.validate()}
	if o.bootstrap && len(o.join) > 0 {
		errs = append(errs, errors.New("--bootstrap and --join are both given; the first server bootstraps, the others join"))
	}
	if o.keepPassword && !o.bootstrap {
		errs = append(errs, errors.New("--keep-first-password is given without --bootstrap; only a new cluster has a first password"))
	}
	if err := coordinator.UnreachablePolicy(o.unreachable).Validate(); err != nil {
		errs = append(errs, fmt.Errorf("--%w", err))
	}
	if o.certLifetime < minCertificateLifetime || o.certLifetime > maxCertificateLifetime {
		errs = append(errs, fmt.Errorf("--certificate-lifetime is %v; give %v to %v", o.certLifetime, minCertificateLifetime, maxCertificateLifetime))
	}
	errs = append(errs, o.validateSnapshots(), o.raft.validate(), o.trial.validate(), o.timeouts.validate())
	return errors.Join(errs...)
}

// Bounds of when the log is compacted: what is less has the disk write snapshots
// all the time, what is more lets it fill up.
const (
	maxSnapshotEntries  = 1_000_000
	minSnapshotInterval = time.Second
	maxSnapshotInterval = time.Hour
)

func (o *serverOptions) validateSnapshots() error {
	s := o.snapshots
	var errs []error
	if s.Threshold < 1 || s.Threshold > maxSnapshotEntries {
		errs = append(errs, fmt.Errorf("--snapshot-entries is %d; give 1 to %d", s.Threshold, maxSnapshotEntries))
	}
	if s.Trailing < 1 || s.Trailing > maxSnapshotEntries {
		errs = append(errs, fmt.Errorf("--snapshot-trailing is %d; give 1 to %d", s.Trailing, maxSnapshotEntries))
	}
	if s.Interval < minSnapshotInterval || s.Interval > maxSnapshotInterval {
		errs = append(errs, fmt.Errorf("--snapshot-interval is %v; give %v to %v", s.Interval, minSnapshotInterval, maxSnapshotInterval))
	}
	return errors.Join(errs...)
}

func (o *serverOptions) validateHTTP() error {
	if _, _, err := net.SplitHostPort(o.http); err != nil {
		return fmt.Errorf("--http %q: give HOST:PORT", o.http)
	}
	return nil
}
