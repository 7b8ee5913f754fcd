package main

import (
	"errors"
	"strconv"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
	"moult/updater"
)

// thisBuild is what the linker was told.
func thisBuild() nodekit.BuildInfo {
	n, _ := strconv.ParseUint(number, 10, 64) // empty: not known
	return nodekit.BuildInfo{Version: version, Number: n}
}

const agentCommandName = "agent"

func newAgentCommand() *cobra.Command { return agentCommand(new(nodekit.AgentOptions)) }

// agentCommand is the command that fills o.
func agentCommand(o *nodekit.AgentOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   agentCommandName,
		Short: "Run an agent: it shows what this host runs, and updates it",
		Long: `Run an agent. This process is a small supervisor; the agent runs as its child, so
that a new binary can be tried and taken back. Joining needs a token from
"moult token create", once.`,
		Example: "  moult agent --data /var/lib/moult --name web-1 --join 10.0.0.1:7947 --token-file token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Reread = rereading(cmd, func() (*cobra.Command, *nodekit.NodeOptions, func() error) {
				fresh := new(nodekit.AgentOptions)
				return agentCommand(fresh), &fresh.NodeOptions, fresh.Validate
			})
			if err := o.Validate(); err != nil {
				return placed(cmd, err)
			}
			o.Build = thisBuild()
			o.Restart = restartBy(cmd.Context(), o.Data, o.Trial.Binary)
			err := nodekit.RunAgent(cmd.Context(), *o, cmd.OutOrStdout(), cmd.ErrOrStderr())
			if errors.Is(err, updater.ErrRestart) {
				return &exitError{code: updater.ExitRestart}
			}
			return err
		},
	}
	o.RegisterFlags(cmd)
	cmd.Flags().BoolVar(&o.Json, "json", false, "print JSON; the log is JSON lines too")
	return cmd
}
