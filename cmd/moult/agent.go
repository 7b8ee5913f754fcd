package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
)

type agentOptions struct {
	nodeOptions
	binary       string
	trialTimeout time.Duration
	trialStarts  int
	soak         time.Duration
}

func newAgentCommand() *cobra.Command {
	var o agentOptions
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run an agent: it shows what this host runs, and updates it",
		Long: `Run an agent. This process is a small supervisor; the agent runs as its child, so
that a new binary can be tried and taken back. Joining needs a token from
"moult token create", once.`,
		Example: "  moult agent --data /var/lib/moult --name web-1 --join 10.0.0.1:7947 --token-file token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			return runAgent(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.segment, "segment", "", "segment of this host (default: the token's)")
	f.StringVar(&o.binary, "binary", "", "installed binary that updates replace (default: this one)")
	f.DurationVar(&o.trialTimeout, "trial-timeout", 60*time.Second, "a new binary that has not proved itself by then is taken back")
	f.IntVar(&o.trialStarts, "trial-starts", 3, "failed starts after which a new binary is taken back")
	f.DurationVar(&o.soak, "soak", 5*time.Second, "how long a new binary has to stay healthy before it is kept")
	return cmd
}

func (o *agentOptions) validate() error {
	if err := o.nodeOptions.validate(); err != nil {
		return err
	}
	if o.trialTimeout < time.Second {
		return fmt.Errorf("--trial-timeout is %v; give at least 1s", o.trialTimeout)
	}
	if o.trialStarts < 1 {
		return fmt.Errorf("--trial-starts is %d; give at least 1", o.trialStarts)
	}
	if o.soak < 0 || o.soak >= o.trialTimeout {
		return fmt.Errorf("--soak is %v; give less than --trial-timeout (%v)", o.soak, o.trialTimeout)
	}
	if o.binary == "" {
		self, err := os.Executable()
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
