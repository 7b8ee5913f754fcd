package main

import (
	"errors"

	"github.com/spf13/cobra"
)

type agentOptions struct {
	nodeOptions
	trial trialOptions
}

func newAgentCommand() *cobra.Command { return agentCommand(new(agentOptions)) }

// agentCommand is the command that fills o.
func agentCommand(o *agentOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run an agent: it shows what this host runs, and updates it",
		Long: `Run an agent. This process is a small supervisor; the agent runs as its child, so
that a new binary can be tried and taken back. Joining needs a token from
"moult token create", once.`,
		Example: "  moult agent --data /var/lib/moult --name web-1 --join 10.0.0.1:7947 --token-file token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.inForce = settingsInForce(cmd)
			if err := o.validate(); err != nil {
				return placed(cmd, err)
			}
			return runAgent(cmd.Context(), *o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.registerFlags(cmd)
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON; the log is JSON lines too")
	return cmd
}

func (o *agentOptions) registerFlags(cmd *cobra.Command) {
	o.register(cmd)
	f := cmd.Flags()
	f.StringVar(&o.segment, "segment", "", "segment of this host (default: the token's)")
	o.trial.register(f)
}

func (o *agentOptions) validate() error {
	return errors.Join(o.nodeOptions.validate(), o.trial.validate())
}
