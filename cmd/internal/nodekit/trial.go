package nodekit

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

// TrialOptions say what updates of this host replace, and how it tries a new binary.
type TrialOptions struct {
	Binary  string
	Place   string
	Timeout time.Duration
	Starts  int
	Soak    time.Duration
}

// Register registers the flags of a trial.
func (o *TrialOptions) Register(f *pflag.FlagSet) {
	f.StringVar(&o.Binary, "binary", "", "installed binary that updates replace (default: this one)")
	f.StringVar(&o.Place, "install-to", string(install.AnyPlace), "where updates go: installed (over --binary), data (the data directory; --binary hands over to it), or auto: data when a package manager owns --binary or it cannot be replaced")
	f.DurationVar(&o.Timeout, "trial-timeout", 60*time.Second, "a new binary that has not proved itself by then is taken back")
	f.IntVar(&o.Starts, "trial-starts", 3, "failed starts after which a new binary is taken back")
	f.DurationVar(&o.Soak, "soak", 5*time.Second, "how long a new binary has to stay healthy before it is kept; 0: no longer than it takes to join")
}

// Validate tells what is wrong with the options, and finds the installed binary.
func (o *TrialOptions) Validate() error {
	var errs []error
	if o.Timeout < time.Second {
		errs = append(errs, fmt.Errorf("--trial-timeout is %v; give at least 1s", o.Timeout))
	}
	if o.Starts < 1 {
		errs = append(errs, fmt.Errorf("--trial-starts is %d; give at least 1", o.Starts))
	}
	if o.Soak < 0 || o.Soak >= o.Timeout {
		errs = append(errs, fmt.Errorf("--soak is %v; give less than --trial-timeout (%v)", o.Soak, o.Timeout))
	}
	if _, err := install.ParsePlace(o.Place); err != nil {
		errs = append(errs, fmt.Errorf("--install-to is %w", err))
	}
	return errors.Join(append(errs, o.findBinary())...)
}

func (o *TrialOptions) findBinary() error {
	if o.Binary == "" {
		self, err := updater.InstalledPath()
		if err != nil {
			return fmt.Errorf("find this binary: %w; name it with --binary", err)
		}
		o.Binary = self
	}
	if st, err := os.Stat(o.Binary); err != nil {
		return fmt.Errorf("--binary %s is not a file; name the installed moult binary: %w", o.Binary, err)
	} else if !st.Mode().IsRegular() {
		return fmt.Errorf("--binary %s is not a file; name the installed moult binary", o.Binary)
	}
	return nil
}

// BeginActive becomes the active binary of the data directory, if there is one that
// goes before this one; active: this is it.
func (o *TrialOptions) BeginActive(dataDir string, b BuildInfo, logger *slog.Logger) (active bool) {
	return updater.BeginActive(updater.PackagedConfig{Installed: o.Binary, DataDir: dataDir, Version: b.Version, Number: b.Number, Logger: logger})
}

// Supervisor is what runs this command again as a child.
func (o *TrialOptions) Supervisor(dataDir string, active bool, output io.Writer, logger *slog.Logger, service updater.Service) updater.SupervisorConfig {
	env := WithoutJoinToken(os.Environ())
	if StderrIsJournal(output) { // the child's is a pipe to this process
		env = append(env, "MOULT_LOG_JOURNAL=true")
	}
	soak := o.Soak
	if soak == 0 {
		soak = -1 // none: to the supervisor 0 is its default
	}
	return updater.SupervisorConfig{
		Installed: o.Binary, Active: active, DataDir: dataDir, Args: os.Args[1:], Env: env,
		TrialTimeout: o.Timeout, MaxStarts: o.Starts, Soak: soak,
		Output: output, Logger: logger, Service: service,
	}
}
