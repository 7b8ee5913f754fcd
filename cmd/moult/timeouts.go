package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"moult/consensus/coordinator"
)

// coordinatorTimeouts are the coordinator's waits as flags.
type coordinatorTimeouts struct {
	coordinator.Timeouts
	stage time.Duration // for the first host of a fleet update to have the release
}

func (t *coordinatorTimeouts) register(cmd *cobra.Command) {
	d := coordinator.DefaultTimeouts
	f := cmd.Flags()
	f.DurationVar(&t.Resend, "resend", d.Resend, "how often an order is sent again until the host shows it")
	f.DurationVar(&t.NoSign, "no-sign", d.NoSign, "no sign of life this long after an order fails the host")
	f.DurationVar(&t.Stalled, "stalled", d.Stalled, "a download without progress this long fails the host")
	f.DurationVar(&t.Rejoin, "rejoin", d.Rejoin, "a host that restarts has this long to come back")
	f.DurationVar(&t.Reason, "reason", d.Reason, "how long a host's own reason may follow its failure")
	f.DurationVar(&t.stage, "stage-wait", coordinator.DefaultStageWait, "the first turn of a fleet update waits this long at most for its host to have the release, while the host shows that it is getting it; 0: it does not wait")
}

func (t *coordinatorTimeouts) validate() error {
	var errs []error
	for _, err := range parts(t.Validate()) {
		errs = append(errs, fmt.Errorf("--%w", err))
	}
	if t.stage < 0 {
		errs = append(errs, fmt.Errorf("--stage-wait is %v; give a duration, or 0 for no wait", t.stage))
	}
	return errors.Join(errs...)
}
