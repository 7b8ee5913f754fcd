package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"moult/consensus/coordinator"
)

// coordinatorTimeouts are the coordinator's waits as flags.
type coordinatorTimeouts struct{ coordinator.Timeouts }

func (t *coordinatorTimeouts) register(cmd *cobra.Command) {
	d := coordinator.DefaultTimeouts
	f := cmd.Flags()
	f.DurationVar(&t.Resend, "resend", d.Resend, "how often an order is sent again until the host shows it")
	f.DurationVar(&t.NoSign, "no-sign", d.NoSign, "no sign of life this long after an order fails the host")
	f.DurationVar(&t.Stalled, "stalled", d.Stalled, "a download without progress this long fails the host")
	f.DurationVar(&t.Rejoin, "rejoin", d.Rejoin, "a host that restarts has this long to come back")
	f.DurationVar(&t.Reason, "reason", d.Reason, "how long a host's own reason may follow its failure")
}

func (t *coordinatorTimeouts) validate() error {
	var errs []error
	for _, err := range parts(t.Validate()) {
		errs = append(errs, fmt.Errorf("--%w", err))
	}
	return errors.Join(errs...)
}
