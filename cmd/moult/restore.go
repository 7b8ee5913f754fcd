package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/consensus/backup"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/artifact"
)

func newServerRestoreCommand() *cobra.Command {
	var o serverOptions
	var keys backupKeys
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make the first server of a cluster out of a backup",
		Long: `Make the first server of a cluster out of a backup, in an empty data directory. The
servers of the old cluster must be gone for good. Start the server afterwards, with
the same flags; then add others with tokens, as new ones.

The cluster keeps its id, its CA, its hosts and users. It enters a new epoch, by a
statement that its CA's key signs: agents take its orders, and those of the old
servers never again. Jobs that ran are failed, queued ones cancelled, and an active
fleet update is halted: nothing is dispatched until somebody wants it.

The whole file is verified before anything is written.`,
		Example: `  moult server restore moult.backup --data /var/lib/moult --name s1
  moult server --data /var/lib/moult --name s1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(o.ValidatePlace(), o.validateHTTP()); err != nil {
				return err
			}
			if err := refuseUsedDir(o.Data); err != nil {
				return err
			}
			key, err := keys.toRead(cmd)
			if err != nil {
				return err
			}
			r := &restore{file: args[0], key: key, o: o, progress: cmd.ErrOrStderr()}
			if err := r.run(cmd.Context()); err != nil {
				return fmt.Errorf("restore %s: %w", args[0], err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"backup": r.header, "epoch": r.epoch, "server": r.server.ID, "data": o.Data})
			}
			r.tell(cmd.ErrOrStderr())
			return nil
		},
	}
	o.RegisterPlace(cmd)
	cmd.Flags().StringVar(&o.http, "http", defaultAddr, "address of the UI and the API")
	keys.registerPassphrase(cmd)
	cmd.Flags().StringVar(&keys.identity, "identity", "", "file with the secret key of age that opens the backup, instead of a passphrase")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// refuseUsedDir refuses a directory that holds anything but what a fresh file
// system does.
func refuseUsedDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look into --data: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return fmt.Errorf("--data %s is not empty (%s is there); a restore takes an empty directory: move the old one away, or give another", dir, e.Name())
		}
	}
	return nil
}

// restore makes a server's data directory of a backup.
type restore struct {
	file     string
	key      backup.Key
	o        serverOptions
	progress io.Writer

	header backup.Header
	state  *fleet.State // as it is in the backup
	server fleet.Host   // the new one
	epoch  uint64       // the new one
}

func (r *restore) run(ctx context.Context) error {
	if err := r.verify(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(r.o.Data, 0o700); err != nil {
		return fmt.Errorf("make --data: %w", err)
	}
	if err := refuseForeignOwner(r.o.Data); err != nil {
		return fmt.Errorf("--data %s: %w", r.o.Data, err)
	}
	unlock, err := nodekit.LockDataDir(r.o.Data)
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.write(ctx); err != nil {
		// The directory was empty; half of a server is of no use.
		for _, name := range []string{"identity", "raft", "artifacts"} {
			err = errors.Join(err, os.RemoveAll(filepath.Join(r.o.Data, name)))
		}
		return errors.Join(err, os.Remove(filepath.Join(r.o.Data, "lock")))
	}
	return nil
}

// read reads the whole file.
func (r *restore) read(ctx context.Context, doing string, c backup.Contents) error {
	f, err := os.Open(r.file)
	if err != nil {
		return err
	}
	defer f.Close()
	meter := &byteMeter{w: r.progress, doing: doing}
	defer meter.end()
	plain, err := r.key.Decrypt(io.TeeReader(untilDone{ctx, f}, meter))
	if err != nil {
		return err
	}
	r.header, err = backup.Read(plain, c)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// verify reads the file, and keeps the state. Nothing is written yet.
func (r *restore) verify(ctx context.Context) error {
	r.state = fleet.New()
	return r.read(ctx, "verifying", backup.Contents{State: r.state.Restore})
}

// write makes the directory. What says that it belongs to a cluster comes last.
func (r *restore) write(ctx context.Context) error {
	ids, err := identity.OpenStore(filepath.Join(r.o.Data, "identity"))
	if err != nil {
		return err
	}
	if err := r.o.FindAddresses(ids); err != nil {
		return err
	}
	enrolment, begin, err := r.enrol(ids, time.Now())
	if err != nil {
		return err
	}
	store, err := artifact.OpenStore(filepath.Join(r.o.Data, "artifacts"), "", "")
	if err != nil {
		return err
	}
	self := consensus.Member{ID: r.server.ID, Address: r.server.PeerAddr}
	err = r.read(ctx, "restoring", backup.Contents{
		State: func(snapshot io.Reader) error {
			return consensus.Restore(filepath.Join(r.o.Data, "raft"), self, snapshot, begin)
		},
		Artifact: func(a backup.Artifact, content io.Reader) error {
			_, err := store.Import(content, a.Size, func(digest string, size int64) bool { return digest == a.SHA256 && size == a.Size })
			return err
		},
	})
	if err != nil {
		return err
	}
	return ids.Save(enrolment)
}

// enrol makes this host a server of the cluster, and the entry that says so.
func (r *restore) enrol(ids *identity.Store, now time.Time) (identity.Enrolment, fleet.Entry, error) {
	cluster, _ := r.state.View().Cluster()
	hostID, key, err := ids.HostKey()
	if err != nil {
		return identity.Enrolment{}, fleet.Entry{}, err
	}
	ca, err := identity.LoadCA(cluster.CACert, cluster.CAKey)
	if err != nil {
		return identity.Enrolment{}, fleet.Entry{}, fmt.Errorf("the cluster's CA: %w", err)
	}
	id := identity.Identity{Cluster: cluster.ID, HostID: hostID, Name: r.o.Name, Role: identity.RoleServer}
	cert, err := ca.Issue(id, publicKey(key), now, defaultCertificateLifetime)
	if err != nil {
		return identity.Enrolment{}, fleet.Entry{}, err
	}
	httpAddr, err := r.o.Advertised(r.o.http)
	if err != nil {
		return identity.Enrolment{}, fleet.Entry{}, fmt.Errorf("--http: %w", err)
	}
	r.server = fleet.Host{
		ID: hostID, Name: r.o.Name, Role: fleet.RoleServer, Segment: serverSegment(r.state.View()),
		OS: runtime.GOOS, Arch: runtime.GOARCH, PublicKey: publicKey(key),
		GossipAddr: r.o.GossipAdv, PeerAddr: r.o.PeerAdv, HTTPAddr: httpAddr,
	}
	segment, err := segmentAnswer(r.state.View(), cluster, r.server.Segment, nil)
	if err != nil {
		return identity.Enrolment{}, fleet.Entry{}, err
	}
	r.epoch = nextEpoch(cluster.Epoch, now)
	begin, err := beginEpoch(cluster, r.epoch, r.server, "the cluster was restored from a backup of "+r.header.TakenAt.Format(time.RFC3339), now)
	return identity.Enrolment{
		Identity: id, CertPEM: cert, CAPEM: cluster.CACert, Segment: r.server.Segment,
		GossipKeys: segment.GossipKeys, GossipRevision: segment.GossipRevision, CAs: trustedBy(cluster), ReleaseKeys: cluster.ReleaseKeys, KeyPolicy: identity.KeyPolicy{ReleaseThreshold: cluster.ReleaseThreshold, KeysNumber: cluster.KeysNumber},
	}, begin, err
}

// serverSegment is the segment that the servers were in.
func serverSegment(v fleet.View) string {
	for _, h := range v.Hosts() {
		if h.Role == fleet.RoleServer {
			return h.Segment
		}
	}
	return fleet.DefaultSegment
}

func (r *restore) tell(w io.Writer) {
	fmt.Fprintf(w, "restored cluster %s as of %s, index %d, into %s\n", r.header.ClusterID, r.header.TakenAt.Local().Format(time.RFC3339), r.header.Index, r.o.Data)
	v := r.state.View()
	if u, active := v.ActiveFleetUpdate(); active {
		fmt.Fprintf(w, "the fleet update to %s was %s and is halted; start it again when the hosts are back\n", printable(u.TargetVersion), u.Status)
	}
	for _, j := range v.OpenJobs() {
		fmt.Fprintf(w, "the update of %s to %s was %s and is ended\n", printable(j.HostName), printable(j.TargetVersion), j.Status)
	}
	fmt.Fprintf(w, "Start the server: moult server --data %s --name %s --gossip %s --peer %s --http %s\n", r.o.Data, r.o.Name, r.o.Gossip, r.o.Peer, r.o.http)
	fmt.Fprintln(w, "Make a backup when it is up, and never start a server of the old cluster again.")
}

// untilDone reads until its context ends.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(b)
}
