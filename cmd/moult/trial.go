package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/pflag"

	"moult/updater"
	"moult/updater/install"
)

// trialOptions say what updates of this host replace, and how it tries a new binary.
type trialOptions struct {
	binary  string
	place   string
	timeout time.Duration
	starts  int
	soak    time.Duration
}

func (o *trialOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.binary, "binary", "", "installed binary that updates replace (default: this one)")
	f.StringVar(&o.place, "install-to", string(install.AnyPlace), "where updates go: installed (over --binary), data (the data directory; --binary hands over to it), or auto: data when a package manager owns --binary or it cannot be replaced")
	f.DurationVar(&o.timeout, "trial-timeout", 60*time.Second, "a new binary that has not proved itself by then is taken back")
	f.IntVar(&o.starts, "trial-starts", 3, "failed starts after which a new binary is taken back")
	f.DurationVar(&o.soak, "soak", 5*time.Second, "how long a new binary has to stay healthy before it is kept")
}

func (o *trialOptions) validate() error {
	var errs []error
	if o.timeout < time.Second {
		errs = append(errs, fmt.Errorf("--trial-timeout is %v; give at least 1s", o.timeout))
	}
	if o.starts < 1 {
		errs = append(errs, fmt.Errorf("--trial-starts is %d; give at least 1", o.starts))
	}
	if o.soak < 0 || o.soak >= o.timeout {
		errs = append(errs, fmt.Errorf("--soak is %v; give less than --trial-timeout (%v)", o.soak, o.timeout))
	}
	if _, err := install.ParsePlace(o.place); err != nil {
		errs = append(errs, fmt.Errorf("--install-to is %w", err))
	}
	return errors.Join(append(errs, o.findBinary())...)
}

func (o *trialOptions) findBinary() error {
	if o.binary == "" {
		self, err := updater.InstalledPath()
		if err != nil {
			return fmt.Errorf("find this binary: %w; name it with --binary", err)
		}
		o.binary = self
	}
	if st, err := os.Stat(o.binary); err != nil {
		return fmt.Errorf("--binary %s is not a file; name the installed moult binary: %w", o.binary, err)
	} else if !st.Mode().IsRegular() {
		return fmt.Errorf("--binary %s is not a file; name the installed moult binary", o.binary)
	}
	return nil
}

// beginActive becomes the active binary of the data directory, if there is one that
// goes before this one; active: this is it.
func (o *trialOptions) beginActive(dataDir string, b buildInfo, logger *slog.Logger) (active bool) {
	return updater.BeginActive(updater.PackagedConfig{Installed: o.binary, DataDir: dataDir, Version: b.version, Number: b.number, Logger: logger})
}

// supervisor is what runs this command again as a child.
func (o *trialOptions) supervisor(dataDir string, active bool, output io.Writer, logger *slog.Logger, service updater.Service) updater.SupervisorConfig {
	env := withoutJoinToken(os.Environ())
	if stderrIsJournal(output) { // the child's is a pipe to this process
		env = append(env, "MOULT_LOG_JOURNAL=true")
	}
	return updater.SupervisorConfig{
		Installed: o.binary, Active: active, DataDir: dataDir, Args: os.Args[1:], Env: env,
		TrialTimeout: o.timeout, MaxStarts: o.starts, Soak: o.soak,
		Output: output, Logger: logger, Service: service,
	}
}
