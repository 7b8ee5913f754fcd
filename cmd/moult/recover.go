package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/mesh/identity"
)

// recoverFlag has to be typed: what it says is what happens.
const recoverFlag = "i-accept-that-acknowledged-changes-may-be-lost"

func newServerRecoverCommand() *cobra.Command {
	var data string
	var accepted, asJSON bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Make a stopped server the only one, when a majority is lost for good",
		Long: `Make a stopped server go on alone, when the majority of the servers is lost for good
and cannot be started again. Changes that only the lost servers had are lost, though
they were acknowledged. Of several servers that are left, take the one whose last
index is the highest: without the flag the command prints it, and changes nothing.

It is refused while the server runs, and when so many of the others answer that they
make a majority, with this one or without it: then start this server instead.

The cluster enters a new epoch, by a statement that its CA's key signs: agents take
no more orders of the others. Jobs that ran are failed, queued ones cancelled, and an
active fleet update is halted. The others must never be started again on their data
directories: wipe them, and let them join as new servers.`,
		Example: `  moult server recover --data /var/lib/moult
  moult server recover --data /var/lib/moult --` + recoverFlag,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := inspectForRecovery(data)
			if err != nil {
				return fmt.Errorf("recover %s: %w", data, err)
			}
			defer r.unlock()
			tell := cmd.ErrOrStderr()
			if asJSON {
				tell = io.Discard
			}
			fmt.Fprintf(tell, "Asking the other servers, for %v at most ...\n", recoverPatience)
			if err := r.ask(cmd.Context()); err != nil {
				return fmt.Errorf("recover %s: ask the other servers: %w", data, err)
			}
			r.tell(tell)
			if err := r.refuse(); err != nil {
				return fmt.Errorf("recover %s: %w", data, err)
			}
			if !accepted {
				return fmt.Errorf("nothing was changed; to go on with this server alone, repeat the command with --%s", recoverFlag)
			}
			epoch, err := r.recover(time.Now())
			if err != nil {
				return fmt.Errorf("recover %s: %w", data, err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"cluster_id": r.creds.Cluster, "epoch": epoch, "last_index": r.stopped.LastIndex, "removed": r.others()})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is the only server now. Start it as before, wipe the others, and let them join with new tokens.\n", printable(r.creds.Name))
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", nodekit.DefaultDataDir, "data directory of the stopped server")
	cmd.Flags().BoolVar(&accepted, recoverFlag, false, "do it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// recovery is a stopped server, and what is left of the others.
type recovery struct {
	dir     string // of Raft
	creds   identity.Credentials
	self    consensus.Member
	stopped consensus.Stopped
	up      map[string]nodeStatus // of the others, by id
	silent  map[string]error      // why the rest of them did not answer
	unlock  func()
}

// inspectForRecovery reads a data directory. The caller unlocks it.
func inspectForRecovery(data string) (r *recovery, err error) {
	if _, err := os.Stat(data); err != nil {
		return nil, fmt.Errorf("look into --data: %w", err)
	}
	if err := refuseForeignOwner(data); err != nil {
		return nil, err
	}
	unlock, err := nodekit.LockDataDir(data)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	ids, err := identity.OpenStore(filepath.Join(data, "identity"))
	if err != nil {
		return nil, err
	}
	creds, err := ids.Load()
	if err != nil {
		return nil, err
	}
	if creds.Role != identity.RoleServer {
		return nil, errors.New("it belongs to an agent; give a server's --data")
	}
	r = &recovery{dir: filepath.Join(data, "raft"), creds: creds, self: consensus.Member{ID: creds.HostID, Address: "unknown:0"}, unlock: unlock}
	if _, err := os.Stat(filepath.Join(r.dir, "log.db")); err != nil {
		return nil, fmt.Errorf("it has no Raft log (%w); restore a backup with: moult server restore", err)
	}
	if r.stopped, err = consensus.Inspect(r.dir, r.self); err != nil {
		return nil, err
	}
	for _, s := range r.stopped.Servers {
		if s.ID == r.self.ID {
			r.self.Address = s.Address
		}
	}
	return r, nil
}

// recoverPatience is how long another server may take to answer: to hold one that stands
// still for a moment for lost would leave two clusters.
const recoverPatience = 10 * time.Second

// ask finds out which of the other servers are up. Its error is that it was broken off.
func (r *recovery) ask(ctx context.Context) error {
	var mu sync.Mutex
	var asked sync.WaitGroup
	r.up, r.silent = map[string]nodeStatus{}, map[string]error{}
	client := newServerClient(func() identity.Credentials { return r.creds }, recoverPatience)
	for _, s := range r.stopped.Servers {
		if s.ID == r.self.ID {
			continue
		}
		asked.Go(func() {
			st, err := client.Status(ctx, s.Address)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.silent[s.ID] = withoutURL(err)
				return
			}
			r.up[s.ID] = st
		})
	}
	asked.Wait()
	return ctx.Err()
}

// refuse says why the server must not go on alone.
func (r *recovery) refuse() error {
	voters, up, member := 0, 0, false
	for _, s := range r.stopped.Servers {
		if s.ID == r.self.ID {
			member = true
		}
		if !s.Voter {
			continue
		}
		voters++
		if _, answers := r.up[s.ID]; answers || s.ID == r.self.ID {
			up++
		}
	}
	switch cluster, ok := r.stopped.State.View().Cluster(); {
	case !ok || len(cluster.CAKey) == 0:
		return errors.New("this server never heard of the cluster's state; take another one, or restore a backup with: moult server restore")
	case !member:
		return errors.New("this server was removed from the cluster; take another one, or restore a backup with: moult server restore")
	case up >= voters/2+1:
		return fmt.Errorf("with this server %d of %d voters are up, which is a majority, so nothing is lost: start this server instead", up, voters)
	}
	return nil
}

// others are the other servers' names, in the order of the configuration.
func (r *recovery) others() []string {
	names := []string{}
	for _, s := range r.stopped.Servers {
		if s.ID != r.self.ID {
			names = append(names, r.nameOf(s.ID))
		}
	}
	return names
}

func (r *recovery) nameOf(id string) string {
	if h, ok := r.stopped.State.View().Host(id); ok {
		return h.Name
	}
	return id
}

// recover makes this server the only one.
func (r *recovery) recover(now time.Time) (epoch uint64, err error) {
	v := r.stopped.State.View()
	cluster, _ := v.Cluster()
	server, ok := v.Host(r.self.ID)
	if !ok {
		return 0, errors.New("this server is not among the hosts of the cluster; take another one, or restore a backup")
	}
	epoch = nextEpoch(cluster.Epoch, now)
	begin, err := beginEpoch(cluster, epoch, server, "the cluster was recovered without a majority", now)
	if err != nil {
		return 0, err
	}
	return epoch, consensus.Recover(r.dir, r.self, begin)
}

func (r *recovery) tell(w io.Writer) {
	v := r.stopped.State.View()
	newest := "none"
	if audit := v.Audit(0, 1); len(audit) > 0 {
		newest = fmt.Sprintf("%s by %s, %s", audit[0].Action, printable(audit[0].Actor), audit[0].At.Local().Format(time.RFC3339))
	}
	fmt.Fprintf(w, "server       %s of cluster %s\nlast index   %d\nlast change  %s\n", printable(r.creds.Name), r.creds.Cluster, r.stopped.LastIndex, newest)
	var told, reasons []string
	for _, s := range r.stopped.Servers {
		if s.ID == r.self.ID {
			continue
		}
		name, state := printable(r.nameOf(s.ID)), "does not answer"
		if st, ok := r.up[s.ID]; ok {
			state = fmt.Sprintf("answers, its state at index %d, this one's at %d", st.AppliedIndex, v.Index())
		} else {
			reasons = append(reasons, fmt.Sprintf("             %s: %s\n", name, printable(r.silent[s.ID].Error())))
		}
		told = append(told, fmt.Sprintf("%s (%s)", name, state))
	}
	fmt.Fprintf(w, "others       %s\n%s", dash(strings.Join(told, ", ")), strings.Join(reasons, ""))
	fmt.Fprintln(w, "may be lost  whatever only they had: changes after the last index, acknowledged or not")
	if u, active := v.ActiveFleetUpdate(); active {
		fmt.Fprintf(w, "will be halted  the fleet update to %s, which is %s\n", printable(u.TargetVersion), u.Status)
	}
	for _, j := range v.OpenJobs() {
		fmt.Fprintf(w, "will be ended   the update of %s to %s, which is %s\n", printable(j.HostName), printable(j.TargetVersion), j.Status)
	}
}
