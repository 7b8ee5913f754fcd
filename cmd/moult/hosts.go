package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
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

// quarantine says why the host gets no updates, if it gets none.
func (h apiHost) quarantine() string {
	if h.Quarantine == nil {
		return ""
	}
	return printable(h.Quarantine.Why)
}

// seen tells when the host was seen last, and through which relay.
func (h apiHost) seen() string {
	if h.SeenVia == "" {
		return ago(h.LastSeen)
	}
	return ago(h.LastSeen) + " through " + printable(h.SeenVia)
}

// runsFrom tells which binary runs; servers hear of another than the installed one
// by the host's reports.
func (h apiHost) runsFrom() string {
	if h.RunsFrom == "" {
		return "the installed binary"
	}
	return printable(h.RunsFrom)
}

func target(h apiHost) string {
	if !h.UpdateAvailable {
		return "up to date"
	}
	return "→ " + printable(h.TargetVersion)
}

func newHostCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "host", Short: "Show, update, label or remove one host",
		Example: "  moult host show web-1\n  moult host update web-1 --wait\n  moult host label web-1 rack=a",
	}
	f.register(cmd)

	show := &cobra.Command{
		Use: "show NAME", Short: "Show one host", Args: cobra.ExactArgs(1),
		Example: "  moult host show web-1\n  moult host show web-1 --json",
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
				{"STAGED", dash(h.stagingWords())},
				{"PHASE", dash(h.Phase)},
				{"RUNS FROM", h.runsFrom()},
				{"KEEPS OF RELEASES", nodekit.ByteCount(h.KeptBytes)},
				{"PLATFORM", h.OS + "/" + h.Arch},
				{"SEGMENT", h.Segment},
				{"RELAYS TO", dash(strings.Join(h.AlsoSegments, ", "))},
				{"LABELS", dash(labelWords(h.Labels))},
				{"QUARANTINE", dash(h.quarantine())},
			})
		}),
	}

	var wait bool
	update := &cobra.Command{
		Use: "update NAME", Short: "Update one host to the target", Args: cobra.ExactArgs(1),
		Long: `Update one host to the newest release, before a fleet update or apart from it. Prints
the id of the job. With --wait the exit code is 1 when the update failed.`,
		Example: "  moult host update web-1\n  moult host update web-1 --wait",
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
		Example: "  moult host remove web-1",
		Long: `Remove a host from the cluster and shut it out. Its certificate goes onto the
deny-list, which servers and hosts follow within seconds: they refuse it, end its
connections, and serve it nothing. The gossip keys of its segments are changed; see
'moult gossip status'. Its agent runs on until it is stopped. To let the host back
in, delete the folder identity in its data directory and start the agent with a new
token.`,
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			h, err := c.hostByName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var out apiRemoval
			if err := c.call(cmd.Context(), http.MethodDelete, "/api/hosts/"+h.ID, nil, &out); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "removed %s; to let it back in, delete the folder identity in its data directory and make a token with: moult token create\n", printable(h.Name))
			out.print(cmd.ErrOrStderr())
			return nil
		}),
	}
	cmd.AddCommand(show, update, newLabelCommand(&f), remove, newDeniedCommand(&f), newReadmitCommand(&f))
	return cmd
}

// apiRemoval is what a removal has brought about, and what is pending.
type apiRemoval struct {
	Denied      bool       `json:"denied"`
	Until       *time.Time `json:"until"`
	Rotating    []string   `json:"rotating"`
	HostsBehind []string   `json:"hosts_behind"`
}

func (r apiRemoval) print(w io.Writer) {
	if !r.Denied || r.Until == nil {
		fmt.Fprintln(w, "its certificate is not denied at other hosts: a server runs an older moult; servers refuse it all the same")
		return
	}
	fmt.Fprintf(w, "denied until %s\n", r.Until.Local().Format(time.DateTime))
	if n := len(r.HostsBehind); n > 0 {
		fmt.Fprintf(w, "pending: %d online hosts have not said yet that they know; moult host denied names them\n", n)
	}
	fmt.Fprintf(w, "pending: new gossip keys for %s; moult gossip status shows who has them\n", strings.Join(r.Rotating, ", "))
}

func newDeniedCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "denied", Short: "List the removed hosts whose certificates are denied", Args: cobra.NoArgs,
		Example: "  moult host denied",
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			var out struct {
				Number uint64 `json:"number"`
				Hosts  []struct {
					HostID string    `json:"host_id"`
					Name   string    `json:"name"`
					Role   string    `json:"role"`
					At     time.Time `json:"at"`
					By     string    `json:"by"`
					Until  time.Time `json:"until"`
				} `json:"hosts"`
				HostsBehind []string `json:"hosts_behind"`
			}
			if err := c.call(cmd.Context(), http.MethodGet, "/api/denied", nil, &out); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			var rows [][]string
			for _, h := range out.Hosts {
				rows = append(rows, []string{printable(h.Name), h.Role, h.At.Local().Format(time.DateTime), printable(h.By), h.Until.Local().Format(time.DateOnly)})
			}
			if err := printTable(cmd.OutOrStdout(), []string{"NAME", "ROLE", "REMOVED", "BY", "DENIED UNTIL"}, rows); err != nil {
				return err
			}
			for _, name := range out.HostsBehind {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s has not said yet that it knows\n", printable(name))
			}
			return nil
		}),
	}
}

func newReadmitCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "readmit NAME", Short: "Lift the quarantine of a host that was cloned", Args: cobra.ExactArgs(1),
		Example: "  moult host readmit web-1",
		Long: `Let a host have updates again that was in quarantine because two machines answered
as it. Before that give one of the two an identity of its own: stop its agent, delete
the folder identity in its data directory, and start it with a new token and name. As
long as both answer the host comes back into quarantine.`,
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			h, err := c.hostByName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := c.call(cmd.Context(), http.MethodPost, "/api/hosts/"+h.ID+"/lift-quarantine", nil, nil); err != nil {
				return err
			}
			return done(cmd, map[string]any{"readmitted": h.Name}, "%s gets updates again", printable(h.Name))
		}),
	}
}
