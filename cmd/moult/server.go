package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/coordinator"
)

type serverOptions struct {
	nodekit.NodeOptions
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
	trial            nodekit.TrialOptions
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
			o.Reread = rereading(cmd, func() (*cobra.Command, *nodekit.NodeOptions, func() error) {
				fresh := new(serverOptions)
				return serverCommand(fresh), &fresh.NodeOptions, fresh.validate
			})
			if err := o.validate(); err != nil {
				return placed(cmd, err)
			}
			o.Build = thisBuild()
			return runServer(cmd.Context(), *o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.registerFlags(cmd)
	cmd.Flags().BoolVar(&o.Json, "json", false, "print JSON; the log is JSON lines too")
	return cmd
}

func (o *serverOptions) registerFlags(cmd *cobra.Command) {
	o.Register(cmd)
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
	o.trial.Register(cmd.Flags())
	cmd.Flags().StringVar(&o.unreachable, "unreachable", string(coordinator.UnreachableIsOffline), fmt.Sprintf(
		"what a fleet update makes of a host whose segment no relay reaches: offline, or wait (%v, then as offline)", coordinator.UnreachableWait))
}

func (o *serverOptions) validate() error {
	errs := []error{o.Validate(), o.validateHTTP(), o.tls.validate()}
	if o.bootstrap && len(o.Join) > 0 {
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
	errs = append(errs, o.validateSnapshots(), o.raft.validate(), o.trial.Validate(), o.timeouts.validate())
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
