package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc/mgr"

	"moult/cmd/internal/nodekit"
	"moult/updater"
	"moult/updater/install"
)

// restartCommand is the helper that outlives the service: an older version's
// supervisor starts it from the new binary, so the words of this command line stay.
const restartCommand = "service-restart"

// restartTimeout bounds the helper's life: a stop, a swap, and two starts.
const restartTimeout = 5 * time.Minute

// restartLogPath is where the helper says how its last run went.
func restartLogPath(name string) string {
	return filepath.Join(nodekit.ProgramData(), name+".restart.log")
}

// restartBy returns how the service that this process is, if it is one, gets
// replaced by the installed binary's.
func restartBy(ctx context.Context, data, installed string) func(install.Marker) error {
	name, ok := ctx.Value(serviceKey{}).(string)
	if !ok {
		return nil
	}
	return func(m install.Marker) error { return startRestarter(name, data, installed, m) }
}

// startRestarter runs the helper from the staged binary: the installed one may be
// what has to be renamed, and must not be held by a process.
func startRestarter(name, data, installed string, m install.Marker) error {
	f, err := install.OpenVerified(m.StagedPath, m.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(restartLogPath(name), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	argv := []string{m.StagedPath, restartCommand, "--service", name, "--data", data, "--binary", installed}
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "MOULT_") })
	p, _, err := install.StartVerified(f, argv, &os.ProcAttr{
		Env: env, Files: []*os.File{null, log, log},
		Sys: &syscall.SysProcAttr{CreationFlags: windows.DETACHED_PROCESS | windows.CREATE_NEW_PROCESS_GROUP},
	})
	if err != nil {
		return fmt.Errorf("start the helper that restarts the service: %w", err)
	}
	return p.Release()
}

// serviceCommands are for Windows' service manager.
func serviceCommands() []*cobra.Command {
	var r restarter
	cmd := &cobra.Command{
		Use: restartCommand, Hidden: true, Args: cobra.NoArgs,
		Short: "Restart a service of moult, with the new binary in its place",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), restartTimeout)
			defer cancel()
			r.say = func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
			return r.run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.name, "service", serviceName(roleAgent), "name of the service")
	f.StringVar(&r.data, "data", nodekit.DefaultDataDir, "its data directory")
	f.StringVar(&r.installed, "binary", defaultPlaces(roleAgent, "").binary, "its installed binary")
	return []*cobra.Command{cmd}
}

// restarter stops a service, swaps its binary if that is due, and starts it. What
// does not start is taken back: no step may leave the host without its agent.
type restarter struct {
	name, data, installed string
	say                   func(format string, args ...any)
}

func (r restarter) run(ctx context.Context) error {
	return withService(r.name, func(s *mgr.Service) error {
		r.say("stopping %s", s.Name)
		if err := stopService(ctx, s); err != nil {
			return err
		}
		if err := r.swapIfDue(); err != nil {
			r.say("the binary is not swapped: %v", err)
		}
		r.say("starting %s", s.Name)
		err := startService(ctx, s)
		if err == nil {
			r.say("%s runs", s.Name)
			return nil
		}
		r.say("%v; going back to the binary before", err)
		if back := r.goBack(ctx, s, err); back != nil {
			return errors.Join(err, back, startService(ctx, s))
		}
		return startService(ctx, s)
	})
}

// swapIfDue finishes a commit that could not rename the running binary. When it
// cannot either, that is how the job ended.
func (r restarter) swapIfDue() error {
	m, err := install.LoadMarker(r.data)
	if errors.Is(err, install.ErrNoMarker) {
		return nil
	}
	if err != nil {
		return err
	}
	if have, err := install.Digest(r.installed); err == nil && have == m.Digest {
		return nil // the next supervisor finishes the rest
	}
	r.say("swapping %s for version %s", r.installed, m.Version)
	err = install.Swap(install.SwapRequest{Staged: m.StagedPath, Digest: m.Digest, Installed: r.installed})
	if err == nil {
		return nil
	}
	return errors.Join(err, updater.SettleRolledBack(r.data, m, "install: "+err.Error()))
}

// goBack puts the binary before the last swap in place, and says so in the job's
// outcome. What does not start although it was not just put in place stays.
func (r restarter) goBack(ctx context.Context, s *mgr.Service, reason error) error {
	o, err := r.lastSwap()
	if err != nil {
		return err
	}
	if err := stopService(ctx, s); err != nil { // the service manager may be trying again
		return err
	}
	if err := install.Reinstate(r.installed); err != nil {
		return err
	}
	o.Result, o.Reason, o.At = install.RolledBack, "the service did not start with version "+o.Version+": "+reason.Error(), time.Now()
	if err := install.RemoveMarker(r.data); err != nil {
		return err
	}
	return install.SaveOutcome(r.data, o)
}

// lastSwap is the outcome of the job that put the installed binary in place.
func (r restarter) lastSwap() (install.Outcome, error) {
	have, err := install.Digest(r.installed)
	if err != nil {
		return install.Outcome{}, err
	}
	if m, err := install.LoadMarker(r.data); err == nil && m.Digest == have { // swapped by swapIfDue
		return install.OutcomeOf(m, install.Committed, time.Now()), nil
	}
	o, err := install.LoadOutcome(r.data)
	if err != nil {
		return o, err
	}
	if o.Digest != have || o.Result != install.Committed {
		return o, fmt.Errorf("%s was not put in place by the last update; it stays", r.installed)
	}
	return o, nil
}
