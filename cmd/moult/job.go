package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// followInterval is how often a followed log is asked for new lines.
const followInterval = 300 * time.Millisecond

func newJobCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "job", Short: "Show a job or its log",
		Long:    "Show a job, which is the update of one host, or its log. `moult fleet status` shows the ids.",
		Example: "  moult job show 3f0e8a52-8d6f-4d7e-9f8a-1c2b3d4e5f60\n  moult job log --follow 3f0e8a52-8d6f-4d7e-9f8a-1c2b3d4e5f60",
	}
	f.register(cmd)

	show := &cobra.Command{
		Use: "show ID", Short: "Show one job", Args: cobra.ExactArgs(1),
		Example: "  moult job show 3f0e8a52-8d6f-4d7e-9f8a-1c2b3d4e5f60",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			var j apiJob
			if err := c.call(cmd.Context(), http.MethodGet, "/api/jobs/"+args[0], nil, &j); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), j)
			}
			return printTable(cmd.OutOrStdout(), []string{"JOB", j.ID}, [][]string{
				{"HOST", dash(j.HostName)},
				{"STATUS", j.Status},
				{"TARGET", j.TargetVersion},
				{"ATTEMPT", fmt.Sprint(j.Attempt)},
				{"ERROR", dash(j.Error)},
			})
		}),
	}

	var follow bool
	log := &cobra.Command{
		Use: "log ID", Short: "Print a job's log", Args: cobra.ExactArgs(1),
		Long:    "Print a job's log. With --follow, go on until the job ends; the exit code is 1 when it failed.",
		Example: "  moult job log 3f0e8a52-8d6f-4d7e-9f8a-1c2b3d4e5f60\n  moult job log --follow 3f0e8a52-8d6f-4d7e-9f8a-1c2b3d4e5f60",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			if follow {
				return followJob(cmd.Context(), c, args[0], cmd.OutOrStdout(), f.json)
			}
			_, err := printJobLog(cmd.Context(), c, args[0], 0, cmd.OutOrStdout(), f.json)
			return err
		}),
	}
	log.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job ends")
	cmd.AddCommand(show, log)
	return cmd
}

// printJobLog prints the lines after seq and returns the last one's.
func printJobLog(ctx context.Context, c *client, id string, seq uint64, w io.Writer, asJSON bool) (uint64, error) {
	for {
		var out struct{ Lines []apiLogLine }
		if err := c.call(ctx, http.MethodGet, fmt.Sprintf("/api/jobs/%s/log?after=%d", id, seq), nil, &out); err != nil {
			return seq, err
		}
		for _, l := range out.Lines {
			if asJSON {
				if err := printJSON(w, l); err != nil {
					return seq, err
				}
			} else {
				fmt.Fprintf(w, "%s %-11s %s\n", l.At.Local().Format("15:04:05.000"), l.Stream, printable(l.Line))
			}
			seq = l.Seq
		}
		if len(out.Lines) == 0 {
			return seq, nil
		}
	}
}

// followJob prints the log until the job ends; a job that failed is an error.
func followJob(ctx context.Context, c *client, id string, w io.Writer, asJSON bool) error {
	var seq uint64
	for {
		var j apiJob
		if err := c.call(ctx, http.MethodGet, "/api/jobs/"+id, nil, &j); err != nil {
			return err
		}
		var err error
		if seq, err = printJobLog(ctx, c, id, seq, w, asJSON); err != nil {
			return err
		}
		switch j.Status {
		case "succeeded":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("job %s %s: %s", id, j.Status, printable(j.Error))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followInterval):
		}
	}
}
