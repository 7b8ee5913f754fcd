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
	if o.timeout < time.Second {
		return fmt.Errorf("--trial-timeout is %v; give at least 1s", o.timeout)
	}
	if o.starts < 1 {
		return fmt.Errorf("--trial-starts is %d; give at least 1", o.starts)
	}
	if o.soak < 0 || o.soak >= o.timeout {
		return fmt.Errorf("--soak is %v; give less than --trial-timeout (%v)", o.soak, o.timeout)
	}
	if o.binary == "" {
		self, err := updater.InstalledPath()
		if err != nil {
			return fmt.Errorf("find this binary: %w; name it with --binary", err)
		}
		o.binary = self
	}
	if st, err := os.Stat(o.binary); err != nil || !st.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("--binary %s is not a file; name the installed moult binary", o.binary), err)
	}
	return nil
}

// supervisor is what runs this command again as a child.
func (o *trialOptions) supervisor(dataDir string, output io.Writer, logger *slog.Logger, service updater.Service) updater.SupervisorConfig {
	env := withoutJoinToken(os.Environ())
	if stderrIsJournal(output) { // the child's is a pipe to this process
		env = append(env, "MOULT_LOG_JOURNAL=true")
	}
	return updater.SupervisorConfig{
		Installed: o.binary, DataDir: dataDir, Args: os.Args[1:], Env: env,
		TrialTimeout: o.timeout, MaxStarts: o.starts, Soak: o.soak,
		Output: output, Logger: logger, Service: service,
	}
}
