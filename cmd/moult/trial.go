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
)

// trialOptions say what updates of this host replace, and how it tries a new binary.
type trialOptions struct {
	binary  string
	timeout time.Duration
	starts  int
	soak    time.Duration
}

func (o *trialOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.binary, "binary", "", "installed binary that updates replace (default: this one)")
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

// supervisor is what runs this command again as a child.
func (o *trialOptions) supervisor(dataDir string, output io.Writer, logger *slog.Logger) updater.SupervisorConfig {
	return updater.SupervisorConfig{
		Installed: o.binary, DataDir: dataDir, Args: os.Args[1:], Env: withoutJoinToken(os.Environ()),
		TrialTimeout: o.timeout, MaxStarts: o.starts, Soak: o.soak,
		Output: output, Logger: logger,
	}
}
