package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

func newHostsCommand() *cobra.Command {
	var f clientFlags
	var status, segment, label, query string
	var behind bool
	cmd := &cobra.Command{
		Use:   "hosts",
		Short: "List the hosts and what they run",
		Example: `  moult hosts
  moult hosts --behind
  moult hosts --label rack=a
  moult hosts --status offline --json`,
		Args: cobra.NoArgs,
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			q := url.Values{}
			for k, v := range map[string]string{"status": status, "segment": segment, "label": label, "q": query} {
				if v != "" {
					q.Set(k, v)
				}
			}
			if behind {
				q.Set("updates", "behind")
			}
			hosts, err := c.hosts(cmd.Context(), "?"+q.Encode())
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"hosts": hosts})
			}
			var rows [][]string
			for _, h := range hosts {
				rows = append(rows, []string{printable(h.Name), h.status(), dash(h.AgentVersion), target(h), dash(h.Phase), h.Segment, h.seen()})
			}
			return printTable(cmd.OutOrStdout(), []string{"NAME", "STATUS", "VERSION", "TARGET", "PHASE", "SEGMENT", "SEEN"}, rows)
		}),
	}
	f.register(cmd)
	cmd.Flags().StringVar(&status, "status", "", "online, offline, unreachable or left")
	cmd.Flags().StringVar(&segment, "segment", "", "only this segment")
	cmd.Flags().StringVarP(&query, "query", "q", "", "part of a name, an id or a label")
	cmd.Flags().StringVar(&label, "label", "", "only hosts with this label: key=value, or a key")
	cmd.Flags().BoolVar(&behind, "behind", false, "only hosts whose version is not the target")
	return cmd
}

// status is the host's state; servers of an older version do not name it.
func (h apiHost) status() string {
	switch {
	case h.Status != "":
		return h.Status
	case h.Online:
		return "online"
	default:
		return "offline"
	}
}

// seen tells when the host was seen last, and through which relay.
func (h apiHost) seen() string {
	if h.SeenVia == "" {
		return ago(h.LastSeen)
	}
	return ago(h.LastSeen) + " through " + printable(h.SeenVia)
}

func target(h apiHost) string {
	if !h.UpdateAvailable {
		return "up to date"
	}
	return "→ " + printable(h.TargetVersion)
}

func newHostCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{Use: "host", Short: "Show, update, label or remove one host"}
	f.register(cmd)

	show := &cobra.Command{
		Use: "show NAME", Short: "Show one host", Args: cobra.ExactArgs(1),
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			h, err := c.hostByName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), h)
			}
			return printTable(cmd.OutOrStdout(), []string{"NAME", printable(h.Name)}, [][]string{
				{"ID", h.ID},
				{"STATUS", h.status() + ", seen " + h.seen()},
				{"VERSION", dash(h.AgentVersion)},
				{"TARGET", target(h)},
				{"PHASE", dash(h.Phase)},
				{"PLATFORM", h.OS + "/" + h.Arch},
				{"SEGMENT", h.Segment},
				{"RELAYS TO", dash(strings.Join(h.AlsoSegments, ", "))},
				{"LABELS", dash(labelWords(h.Labels))},
			})
		}),
	}

	var wait bool
	update := &cobra.Command{
		Use: "update NAME", Short: "Update one host to the target", Args: cobra.ExactArgs(1),
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			h, err := c.hostByName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var out struct {
				JobID string `json:"job_id"`
			}
			if err := c.call(cmd.Context(), http.MethodPost, "/api/hosts/"+h.ID+"/update", nil, &out); err != nil {
				return err
			}
			if f.json {
				if err := printJSON(cmd.OutOrStdout(), out); err != nil {
					return err
				}
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), out.JobID)
			}
			if !wait {
				fmt.Fprintf(cmd.ErrOrStderr(), "queued; follow it with: moult job log --follow %s\n", out.JobID)
				return nil
			}
			return followJob(cmd.Context(), c, out.JobID, cmd.ErrOrStderr(), false)
		}),
	}
	update.Flags().BoolVar(&wait, "wait", false, "wait for the end, showing the log")

	remove := &cobra.Command{
		Use: "remove NAME", Short: "Remove a host from the cluster", Args: cobra.ExactArgs(1),
		Long: `Remove a host from the cluster. Its agent runs on until it is stopped. To let the
host back in, delete the folder identity in its data directory and start the agent
with a new token.`,
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			h, err := c.hostByName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodDelete, "/api/hosts/"+h.ID, nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "removed %s; to let it back in, delete the folder identity in its data directory and make a token with: moult token create\n", printable(h.Name))
			return nil
		}),
	}
	cmd.AddCommand(show, update, newLabelCommand(&f), remove)
	return cmd
}
