package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"moult/cmd/internal/nodekit"
)

// reloadable are the flags that take effect while the process runs. Certificates of
// --tls-cert are looked at again by themselves.
var reloadable = []string{"log-debug", "serve-streams", "serve-rate", "pull-rate", "store-limit"}

// settingsInForce are a command's flags as they were given, from wherever.
func settingsInForce(cmd *cobra.Command) map[string]string {
	values := map[string]string{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { values[f.Name] = f.Value.String() })
	return values
}

// reloader reads the configuration of a running server or agent again.
type reloader struct {
	args  []string // of this process
	fresh func() (*cobra.Command, *nodekit.NodeOptions, func() error)
	apply func(nodekit.NodeOptions) // of reloadable flags; the others are as they were
	log   *slog.Logger

	mu      sync.Mutex
	inForce map[string]string
}

// rereading is how a process whose command was cmd reads its configuration again;
// fresh makes such a command anew.
func rereading(cmd *cobra.Command, fresh func() (*cobra.Command, *nodekit.NodeOptions, func() error)) func(func(nodekit.NodeOptions), *slog.Logger) func() nodekit.ReloadReport {
	inForce := settingsInForce(cmd)
	return func(apply func(nodekit.NodeOptions), logger *slog.Logger) func() nodekit.ReloadReport {
		r := &reloader{args: os.Args[1:], inForce: inForce, fresh: fresh, apply: apply, log: logger}
		return r.reload
	}
}

// reload takes over what has changed. A file in which anything is wrong changes
// nothing.
func (r *reloader) reload() nodekit.ReloadReport {
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

func (r *reloader) read() (nodekit.ReloadReport, error) {
	report := nodekit.ReloadReport{Applied: []string{}, NeedsRestart: []string{}}
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
			report, err := nodekit.AskToReload(cmd.Context(), data)
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
