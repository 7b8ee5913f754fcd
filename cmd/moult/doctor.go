package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
)

// Limits of a diagnosis.
const (
	doctorTimeout = 30 * time.Second // all of it
	dialTimeout   = 3 * time.Second  // one node port
	maxDials      = 16               // node ports that are dialled

)

// The verdicts of a finding.
const (
	findingOK      = "ok"
	findingWarning = "warning"
	findingFailed  = "failed"
)

// finding is one thing that was looked at.
type finding struct {
	Check   string `json:"check"`
	Verdict string `json:"verdict"`
	Detail  string `json:"detail"`
	Next    string `json:"next,omitempty"` // what to do about it
}

// diagnosis is what `moult doctor` found.
type diagnosis struct {
	Healthy  bool      `json:"healthy"` // nothing failed
	Findings []finding `json:"findings"`
}

func (d *diagnosis) ok(check, format string, args ...any) {
	d.Findings = append(d.Findings, finding{Check: check, Verdict: findingOK, Detail: fmt.Sprintf(format, args...)})
}

func (d *diagnosis) warn(check, next, format string, args ...any) {
	d.Findings = append(d.Findings, finding{Check: check, Verdict: findingWarning, Detail: fmt.Sprintf(format, args...), Next: next})
}

func (d *diagnosis) fail(check, next, format string, args ...any) {
	d.Findings = append(d.Findings, finding{Check: check, Verdict: findingFailed, Detail: fmt.Sprintf(format, args...), Next: next})
	d.Healthy = false
}

func newDoctorCommand() *cobra.Command {
	var data, binary string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this host's agent or server reaches, and what is in its way",
		Long: `Tell what this host's agent or server reaches, through whom, and what is in the way:
data directory, disk, certificate, CA, gossip and release keys, whether an update could
be put in place, its own ports, the members of each segment, the way to each server,
clocks, and which node ports are blocked. Each finding names the next step. Run it on the host in question, as the user that the agent runs as. It
changes nothing.

Exit code 0: nothing failed; warnings are possible. 1: something failed.`,
		Example: "  moult doctor\n  moult doctor --data /var/lib/moult --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
			defer cancel()
			d := diagnose(ctx, data, binary)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			var err error
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), d)
			} else {
				err = printDiagnosis(cmd.OutOrStdout(), d)
			}
			if err == nil && !d.Healthy {
				return &exitError{code: 1}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&data, "data", nodekit.DefaultDataDir, "data directory of the agent or server")
	cmd.Flags().StringVar(&binary, "binary", "", "installed binary that updates replace (default: the agent's own)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// diagnose looks at everything that can be looked at: what cannot, because
// something else failed, is left out.
func diagnose(ctx context.Context, data, binary string) diagnosis {
	d := diagnosis{Healthy: true, Findings: []finding{}}
	if !d.lookAtDataDir(data) {
		return d
	}
	creds, enrolled := d.lookAtIdentity(data)
	running, wasRunning := d.lookAtRunning(data)
	if binary == "" {
		binary = running.Binary
	}
	d.lookAtActive(data, binary)
	if binary != "" {
		d.lookAtInstalled(ctx, data, binary, running.InstallTo)
	}
	if !enrolled || !wasRunning {
		return d
	}
	self, err := askSelf(ctx, creds, running.Peer)
	if err != nil {
		d.fail("process", "start it, or look at its log; if it runs: is the node port filtered on this host itself?",
			"nothing answers for this host at its node port %s: %v", running.Peer, err)
		d.lookAtOwnPorts(running)
		d.lookAtClock(ctx, creds)
		d.lookAtNodePorts(ctx, creds, serversToDial(creds.Servers))
		return d
	}
	d.ok("process", "moult %s runs and answers at %s, phase %s", self.Version, running.Peer, self.Phase)
	d.lookAtUIPort(ctx, running)
	names := namesOf(ctx, creds, self.Survey)
	d.lookAtPools(creds.Role, self.Survey, names)
	d.lookAtWays(creds.Role, self.Survey, names)
	d.lookAtNodePorts(ctx, creds, waysToDial(self.Survey, names))
	return d
}

func printDiagnosis(w io.Writer, d diagnosis) error {
	rows := make([][]string, 0, 2*len(d.Findings))
	for _, f := range d.Findings {
		rows = append(rows, []string{f.Verdict, f.Check, printable(f.Detail)})
		if f.Next != "" {
			rows = append(rows, []string{"", "", "→ " + printable(f.Next)})
		}
	}
	return printTable(w, []string{"VERDICT", "CHECK", "DETAIL"}, rows)
}

// skewWarning is how far a clock may be off another host's before that is told:
// orders live for minutes, certificates for months.
const skewWarning = 30 * time.Second
