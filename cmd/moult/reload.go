package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/time/rate"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// reloadable are the flags that take effect while the process runs. Certificates of
// --tls-cert are looked at again by themselves.
var reloadable = []string{"log-debug", "serve-streams", "serve-rate", "pull-rate"}

// reloadTimeout bounds asking the process to reload.
const reloadTimeout = 10 * time.Second

// pathReload is asked by `moult config reload` on the same host, with the host's own
// certificate: POST gives a reloadReport. Nobody else gets an answer.
const pathReload = "/node/self/reload"

// reloadReport is what came of reading the configuration again.
type reloadReport struct {
	File         string   `json:"file"`
	Applied      []string `json:"applied"`       // keys that changed and took effect
	NeedsRestart []string `json:"needs_restart"` // keys that changed and did not
	Error        string   `json:"error,omitempty"`
}

func (r reloadReport) String() string {
	switch {
	case r.Error != "":
		return r.Error
	case len(r.Applied)+len(r.NeedsRestart) == 0:
		return "nothing has changed in " + r.File
	}
	var said []string
	if len(r.Applied) > 0 {
		said = append(said, "taken over: "+strings.Join(r.Applied, ", "))
	}
	if len(r.NeedsRestart) > 0 {
		said = append(said, "needs a restart: "+strings.Join(r.NeedsRestart, ", "))
	}
	return strings.Join(said, "; ")
}

// settingsInForce are a command's flags as they were given, from wherever.
func settingsInForce(cmd *cobra.Command) map[string]string {
	values := map[string]string{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { values[f.Name] = f.Value.String() })
	return values
}

// reloader reads the configuration of a running server or agent again.
type reloader struct {
	args  []string // of this process
	fresh func() (*cobra.Command, *nodeOptions, func() error)
	apply func(nodeOptions) // of reloadable flags; the others are as they were
	log   *slog.Logger

	mu      sync.Mutex
	inForce map[string]string
}

func newServerReloader(o serverOptions, apply func(nodeOptions), logger *slog.Logger) *reloader {
	return &reloader{args: os.Args[1:], inForce: o.inForce, apply: apply, log: logger, fresh: func() (*cobra.Command, *nodeOptions, func() error) {
		fresh := new(serverOptions)
		return serverCommand(fresh), &fresh.nodeOptions, fresh.validate
	}}
}

func newAgentReloader(o agentOptions, apply func(nodeOptions), logger *slog.Logger) *reloader {
	return &reloader{args: os.Args[1:], inForce: o.inForce, apply: apply, log: logger, fresh: func() (*cobra.Command, *nodeOptions, func() error) {
		fresh := new(agentOptions)
		return agentCommand(fresh), &fresh.nodeOptions, fresh.validate
	}}
}

// reload takes over what has changed. A file in which anything is wrong changes
// nothing.
func (r *reloader) reload() reloadReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	report, err := r.read()
	if err != nil {
		report.Error = err.Error()
		r.log.Error("the configuration is not reloaded, nothing has changed", "error", err)
		return report
	}
	r.log.Info("configuration reloaded", "file", report.File, "applied", report.Applied, "needs_restart", report.NeedsRestart)
	return report
}

func (r *reloader) read() (reloadReport, error) {
	report := reloadReport{Applied: []string{}, NeedsRestart: []string{}}
	cmd, o, validate := r.fresh()
	cmd.Flags().String("config", "", "")
	_, rest, err := newRootCommand().Find(r.args)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err != nil {
		return report, fmt.Errorf("read the command line again: %w", err)
	}
	if report.File, _ = settingsPath(cmd); report.File == "" {
		return report, errors.New("this process was started without --config and MOULT_CONFIG; flags and environment are read at the start only, so restart it")
	}
	if err := loadSettings(cmd); err != nil {
		return report, err
	}
	now := settingsInForce(cmd)
	if err := validate(); err != nil {
		return report, placed(cmd, err)
	}
	for _, name := range sortedNames(cmd.Flags()) {
		if now[name] == r.inForce[name] {
			continue
		}
		if !slices.Contains(reloadable, name) {
			report.NeedsRestart = append(report.NeedsRestart, keyOf(name))
			continue
		}
		report.Applied = append(report.Applied, keyOf(name))
		r.inForce[name] = now[name]
	}
	if len(report.Applied) > 0 {
		r.apply(*o)
	}
	return report, nil
}

func sortedNames(flags *pflag.FlagSet) (names []string) {
	flags.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) }) // in order
	return names
}

// takeOver has a running node serve, fetch and log as o says.
func (a *artifactSide) takeOver(running, o nodeOptions) {
	running.logDebug = o.logDebug
	running.setLevel()
	a.served.SetLimits(o.serve.limits())
	a.patchLimiter.SetLimit(rateOf(o.serve.rate))
	a.limiter.SetLimit(rateOf(o.serve.pull))
}

// rateOf is a rate of settings, in which 0 is no limit.
func rateOf(bytesPerSecond byteSize) rate.Limit {
	if bytesPerSecond == 0 {
		return rate.Inf
	}
	return rate.Limit(bytesPerSecond)
}

// onHangup reloads at each SIGHUP until ctx ends.
func onHangup(ctx context.Context, reload func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			reload()
		}
	}
}

// reloadEndpoint answers this host, and nobody else.
func reloadEndpoint(r *reloader, self string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if nodeport.PeerFrom(req.Context()).HostID != self {
			http.Error(w, "only this host may ask", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(r.reload()) // the caller is gone if this errs
	}
}

// askToReload has the node that runs on this host read its configuration again.
func askToReload(ctx context.Context, data string) (report reloadReport, err error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	running, err := readRunning(data)
	if err != nil {
		return report, fmt.Errorf("find the process: %w; is --data right, and does it run? See: moult doctor", err)
	}
	ids, err := identity.OpenStore(filepath.Join(data, "identity"))
	if err != nil {
		return report, err
	}
	creds, err := ids.Load()
	if err != nil {
		return report, err
	}
	client := clientOfSelf(creds)
	defer client.CloseIdleConnections()
	if err := (&serverClient{http: client}).postJSON(ctx, running.Peer, pathReload, struct{}{}, &report); err != nil {
		return report, fmt.Errorf("ask the process at %s: %w; does it run? See: moult doctor", running.Peer, err)
	}
	return report, nil
}

func newConfigReloadCommand() *cobra.Command {
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "reload", Short: "Have the running agent or server read its configuration file again",
		Long: `Have the agent or server that runs on a data directory read its configuration file
again, as SIGHUP does. What can change while it runs is taken over: ` + reloadableWords() + `.
Other keys that have changed are named; they need a restart. A file in which anything is
wrong changes nothing, and what is wrong is shown.

Run it on the host, as the user that the process runs as.

Exit code 0: read. 1: the file is wrong, or the process does not answer.`,
		Example: `  moult config reload
  moult config reload --data /var/lib/moult --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := askToReload(cmd.Context(), data)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), report)
			} else if report.Error == "" {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), report)
			}
			switch {
			case err != nil || report.Error == "":
				return err
			case asJSON:
				return &exitError{code: 1}
			}
			return errors.New("nothing has changed: " + report.Error)
		},
	}
	cmd.Flags().StringVar(&data, "data", "/var/lib/moult", "data directory of the agent or server")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func reloadableWords() string {
	keys := make([]string, len(reloadable))
	for i, name := range reloadable {
		keys[i] = keyOf(name)
	}
	return strings.Join(keys, ", ")
}
