package main

import (
	"context"
	"errors"
	"strconv"

	"github.com/spf13/cobra"

	"moult/updater"
	"moult/updater/install"
)

type agentOptions struct {
	nodeOptions
	trial trialOptions
	// work is what the program does besides being an agent, until ctx ends; nil:
	// nothing. A new binary is not committed before ready is closed, if it is given.
	work  func(ctx context.Context) error
	ready <-chan struct{}
	// restart has this process replaced by the installed binary's, where a process
	// cannot become another program; nil: it can.
	restart func(install.Marker) error
}

// thisBuild is what the linker was told.
func thisBuild() buildInfo {
	n, _ := strconv.ParseUint(number, 10, 64) // empty: not known
	return buildInfo{version: version, number: n}
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
			o.reread = rereading(cmd, func() (*cobra.Command, *nodeOptions, func() error) {
				fresh := new(agentOptions)
				return agentCommand(fresh), &fresh.nodeOptions, fresh.validate
			})
			if err := o.validate(); err != nil {
				return placed(cmd, err)
			}
			o.build = thisBuild()
			o.restart = restartBy(cmd.Context(), o.data, o.trial.binary)
			err := runAgent(cmd.Context(), *o, cmd.OutOrStdout(), cmd.ErrOrStderr())
			if errors.Is(err, updater.ErrRestart) {
				return &exitError{code: updater.ExitRestart}
			}
			return err
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
