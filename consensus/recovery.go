package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"moult/consensus/fleet"
)

// indexGap is how far the log of a new epoch begins above the index that is known
// of the old one: further than the lost servers can have gone on. Epochs fence the
// hosts; the gap does so for those that run an agent from before there were epochs.
const indexGap = 1 << 30

// currentTermKey is where Raft keeps its term.
var currentTermKey = []byte("CurrentTerm")

// Member is one server of a group: its id, and where the others dial it.
type Member struct {
	ID, Address string
}

func (m Member) alone() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Address)}}}
}

// Stopped is what a stopped server's directory holds.
type Stopped struct {
	Servers   []ServerStatus // the newest configuration, committed or not
	LastIndex uint64         // of the log
	State     *fleet.State   // with every entry that the server has, committed or not
}

// Inspect reads the directory of a server that does not run. It changes nothing.
func Inspect(dir string, self Member) (Stopped, error) {
	f, err := openFiles(dir, self)
	if err != nil {
		return Stopped{}, err
	}
	defer f.close()
	_, transport := raft.NewInmemTransport(raft.ServerAddress(self.Address))
	configuration, err := raft.GetConfiguration(f.config, f.fsm, f.store, f.store, f.snaps, transport)
	if err != nil {
		return Stopped{}, fmt.Errorf("read the Raft configuration in %s: %w", dir, err)
	}
	out := Stopped{State: f.fsm.state, LastIndex: f.fsm.state.View().Index()}
	if kept, err := f.snaps.List(); err == nil && len(kept) > 0 {
		out.LastIndex = kept[0].Index
	}
	last, err := f.store.LastIndex()
	if err != nil {
		return Stopped{}, err
	}
	for index := out.LastIndex + 1; index <= last; index++ {
		var entry raft.Log
		if err := f.store.GetLog(index, &entry); err != nil {
			return Stopped{}, fmt.Errorf("read entry %d of the log in %s: %w", index, dir, err)
		}
		if entry.Type == raft.LogCommand {
			f.fsm.Apply(&entry)
		}
	}
	out.LastIndex = max(out.LastIndex, last)
	for _, s := range configuration.Servers {
		out.Servers = append(out.Servers, ServerStatus{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out, nil
}

// Restore makes dir the directory of a new group whose only member is self. Its
// state is that of a snapshot with one entry applied to it, an fleet.EpochBegun,
// so that no server ever runs on the one without the other. ErrBootstrapped when
// dir holds any Raft state; what is not a whole snapshot is refused before dir is
// made.
func Restore(dir string, self Member, snapshot io.Reader, begin fleet.Entry) error {
	state := fleet.New()
	if err := state.Restore(snapshot); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the raft directory: %w", err)
	}
	f, err := openFiles(dir, self)
	if err != nil {
		return err
	}
	defer f.close()
	exists, err := raft.HasExistingState(f.store, f.store, f.snaps)
	if err != nil {
		return fmt.Errorf("look for raft state in %s: %w", dir, err)
	}
	if exists {
		return fmt.Errorf("restore into %s: %w", dir, ErrBootstrapped)
	}
	const term = 1 // the old group's terms are nothing to this one
	if err := f.store.SetUint64(currentTermKey, term); err != nil {
		return fmt.Errorf("write the Raft term: %w", err)
	}
	return f.begin(self, state, state.View().Index(), term, begin)
}

// Recover makes a stopped server the only member of its group, for when a
// majority of the others is lost for good. Whatever is in its log counts as
// committed, and begin, an fleet.EpochBegun, is applied to it. What only the
// others had is lost; none of them may run on its old directory ever again.
func Recover(dir string, self Member, begin fleet.Entry) error {
	f, err := openFiles(dir, self)
	if err != nil {
		return err
	}
	defer f.close()
	_, transport := raft.NewInmemTransport(raft.ServerAddress(self.Address))
	if err := raft.RecoverCluster(f.config, f.fsm, f.store, f.store, f.snaps, transport, self.alone()); err != nil {
		return fmt.Errorf("recover %s: %w", dir, err)
	}
	kept, err := f.snaps.List()
	if err != nil || len(kept) == 0 {
		return fmt.Errorf("list the snapshots in %s: %w", dir, errors.Join(err, os.ErrNotExist))
	}
	return f.begin(self, f.fsm.state, kept[0].Index, kept[0].Term, begin)
}

// files are the files of a server that does not run.
type files struct {
	config *raft.Config
	store  *raftboltdb.BoltStore
	snaps  *raft.FileSnapshotStore
	fsm    *fsm
}

func openFiles(dir string, self Member) (files, error) {
	store, err := openStore(dir)
	if err != nil {
		return files{}, err
	}
	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(self.ID)
	config.NoLegacyTelemetry = true
	config.Logger = raftLogger{out: slog.New(slog.DiscardHandler)}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, config.Logger)
	if err != nil {
		return files{}, errors.Join(fmt.Errorf("open the snapshots in %s: %w", dir, err), store.Close())
	}
	return files{config: config, store: store, snaps: snaps, fsm: newFSM()}, nil
}

// close lets others open the directory. What was written is on the disk by then.
func (f files) close() { _ = f.store.Close() }

// openStore opens the log, which one process at a time can.
func openStore(dir string) (*raftboltdb.BoltStore, error) {
	path := filepath.Join(dir, logFile)
	store, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		// Without NoFreelistSync each commit writes the whole list of free pages.
		BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: lockTimeout},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: another moult server uses this data directory; stop it or give another --data", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the raft log %s: %w", path, err)
	}
	return store, nil
}

// begin applies the first entry of an epoch to a state that ends at index, and
// leaves the result as the newest snapshot. The configuration counts as of there:
// no configuration of the lost timeline is newer.
func (f files) begin(self Member, state *fleet.State, index, term uint64, entry fleet.Entry) error {
	index += indexGap
	if result := state.Apply(index, entry); result.Err != nil {
		return result.Err
	}
	var text bytes.Buffer
	if err := state.Snapshot(&text); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	_, transport := raft.NewInmemTransport(raft.ServerAddress(self.Address))
	sink, err := f.snaps.Create(raft.SnapshotVersionMax, index, term, self.alone(), index, transport)
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := text.WriteTo(sink); err != nil {
		_ = sink.Cancel() // the write's error is the one that counts
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}
