package nodekit

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"moult/updater/install"
)

// AgentOptions are what an agent is started with.
type AgentOptions struct {
	NodeOptions
	Trial TrialOptions
	// Work is what the program does besides being an agent, until ctx ends; nil:
	// nothing. A new binary is not committed before Ready is closed, if it is given.
	Work  func(ctx context.Context) error
	Ready <-chan struct{}
	// Restart has this process replaced by the installed binary's, where a process
	// cannot become another program; nil: it can.
	Restart func(install.Marker) error
}

// RegisterFlags registers the flags of an agent.
func (o *AgentOptions) RegisterFlags(cmd *cobra.Command) {
	o.Register(cmd)
	f := cmd.Flags()
	o.Serve.registerStore(f)
	f.StringVar(&o.Segment, "segment", "", "segment of this host (default: the token's)")
	o.Trial.Register(f)
}

// Validate tells what is wrong with the options, flag by flag, and computes what follows from them.
func (o *AgentOptions) Validate() error {
	return errors.Join(o.NodeOptions.Validate(), o.Trial.Validate())
}
