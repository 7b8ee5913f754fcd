package updater

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"

	"golang.org/x/time/rate"

	"moult/mesh/identity"
	"moult/updater/artifact"
	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/patch"
	"moult/updater/release"
)

// Mesh is how the updater is heard.
type Mesh interface {
	// Announce puts a phase and the job it is about into the host's record.
	Announce(phase, jobID string)
	// Report sends a report, with the record added, to the servers. It does not
	// wait for them.
	Report(context.Context, Report)
}

// Config is what an Updater needs of its host.
type Config struct {
	HostID      string
	Cluster     string             // its id
	Verifier    *identity.Verifier // of the servers that sign orders
	ReleaseKeys release.KeySet     // as given when the host joined; DATA/trust.json has those of today
	Fence       *order.Fence

	DataDir   string        // the agent's data directory
	Installed string        // path of the installed binary
	Place     install.Place // where releases are to be committed to; empty: install.AnyPlace
	Version   string        // what this process is
	Digest    string        // sha256 of the running binary, 64 hex digits

	Store      *artifact.Store
	Candidates func(digest string) []artifact.Peer // who may have an artifact; asked again and again
	Patches    *patch.Store                        // of what was fetched as a patch; nil: whole artifacts only
	Relays     func(via []string) []artifact.Peer  // who may get it for this host; nil: nobody
	Named      func(ids []string) []artifact.Peer  // those of these hosts that are online and within reach; nil: nobody
	HTTP       *http.Client                        // reaches peers' node ports
	Limiter    *rate.Limiter                       // of what is fetched; nil: none
	// Spare is how many artifacts are kept besides the one that runs and the one
	// that is to run; 0: 2, negative: all, where somebody else prunes the store.
	Spare int
	// MayRestart is asked when nothing but the restart on trial is left to do. An
	// error fails the job with its text. It may wait; nil: always.
	MayRestart func(context.Context) error

	Mesh Mesh
	// Link is the line to the supervisor; nil when there is none.
	Link   *SupervisorLink
	Logger *slog.Logger
}

func (c *Config) validate() error {
	switch {
	case c.HostID == "" || c.Cluster == "" || c.Verifier == nil || c.Fence == nil:
		return errors.New("updater: host id, cluster, verifier and fence have to be given")
	case c.DataDir == "" || c.Installed == "" || c.Version == "" || len(c.Digest) != 64:
		return errors.New("updater: data directory, installed binary, version and digest have to be given")
	case c.Store == nil || c.Candidates == nil || c.HTTP == nil || c.Mesh == nil:
		return errors.New("updater: store, candidates, HTTP client and mesh have to be given")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Spare = cmp.Or(c.Spare, spareArtifacts)
	return nil
}

// New returns an Updater; Run starts its work.
func New(cfg Config) (*Updater, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	return &Updater{
		cfg: cfg, slog: cfg.Logger.With("component", "updater"),
		orders: make(chan received, 4), kick: make(chan struct{}, 1), acked: make(chan struct{}, 1),
	}, nil
}
