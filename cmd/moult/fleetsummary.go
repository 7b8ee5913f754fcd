package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
)

// fleetSummary tells what a fleet update cost.
type fleetSummary struct {
	ID              string        `json:"id"`
	TargetVersion   string        `json:"target_version"`
	Status          string        `json:"status"`
	Succeeded       int           `json:"succeeded"`
	Failed          int           `json:"failed"`
	Skipped         int           `json:"skipped"`
	Seconds         float64       `json:"seconds"` // from start to end, or to now
	BytesFromPeers  int64         `json:"bytes_from_peers"`
	BytesFromServer int64         `json:"bytes_from_servers"`
	Hosts           []hostSummary `json:"hosts"`
}

type hostSummary struct {
	Name            string  `json:"name"`
	Status          string  `json:"status"`
	Seconds         float64 `json:"seconds"`
	BytesFromPeers  int64   `json:"bytes_from_peers"`
	BytesFromServer int64   `json:"bytes_from_servers"`
}

func newFleetSummaryCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "summary [ID]", Short: "Show what a fleet update cost: seconds per host, and who served the bytes", Args: cobra.MaximumNArgs(1),
		Example: "  moult fleet summary\n  moult fleet summary --json",
		RunE: f.onFleetUpdate(func(cmd *cobra.Command, c *client, u apiFleetUpdate) error {
			s, err := summarize(cmd.Context(), c, u)
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			var rows [][]string
			for _, h := range s.Hosts {
				rows = append(rows, []string{printable(h.Name), h.Status, fmt.Sprintf("%.1f", h.Seconds), nodekit.ByteCount(h.BytesFromPeers), nodekit.ByteCount(h.BytesFromServer)})
			}
			if err := printTable(cmd.OutOrStdout(), []string{"HOST", "STATUS", "SECONDS", "FROM PEERS", "FROM SERVERS"}, rows); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "\n%d hosts in %.1f s; %s served by peers, %s by servers\n",
				s.Succeeded, s.Seconds, nodekit.ByteCount(s.BytesFromPeers), nodekit.ByteCount(s.BytesFromServer))
			return nil
		}),
	}
}

func summarize(ctx context.Context, c *client, u apiFleetUpdate) (fleetSummary, error) {
	s := fleetSummary{ID: u.ID, TargetVersion: u.TargetVersion, Status: u.Status, Seconds: secondsBetween(u.StartedAt, u.CompletedAt)}
	for _, t := range u.Hosts {
		h := hostSummary{Name: t.Name, Status: t.Status}
		switch t.Status {
		case "succeeded":
			s.Succeeded++
		case "failed":
			s.Failed++
		case "skipped":
			s.Skipped++
		}
		if t.JobID != "" {
			var j apiJob
			if err := c.call(ctx, http.MethodGet, "/api/jobs/"+t.JobID, nil, &j); err != nil {
				return s, err
			}
			h.Seconds = secondsBetween(j.StartedAt, j.FinishedAt)
			for _, src := range j.Sources {
				if src.Role == "server" {
					h.BytesFromServer += src.Bytes
				} else {
					h.BytesFromPeers += src.Bytes
				}
			}
		}
		s.BytesFromPeers += h.BytesFromPeers
		s.BytesFromServer += h.BytesFromServer
		s.Hosts = append(s.Hosts, h)
	}
	return s, nil
}

func secondsBetween(from, to *time.Time) float64 {
	if from == nil {
		return 0
	}
	end := time.Now()
	if to != nil {
		end = *to
	}
	return end.Sub(*from).Seconds()
}
