package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newFleetCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "fleet", Short: "Update the fleet, host by host",
		Long: `Update the fleet, host by host: start a fleet update, watch it, stop it. The first host
that fails halts it; what it did until then stays.`,
		Example: "  moult fleet update --dry-run\n  moult fleet update --yes --watch\n  moult fleet status",
	}
	f.register(cmd)
	cmd.AddCommand(newFleetUpdateCommand(&f), newFleetSummaryCommand(&f))

	cmd.AddCommand(&cobra.Command{
		Use: "status [ID]", Short: "Show the running or last fleet update", Args: cobra.MaximumNArgs(1),
		Example: "  moult fleet status\n  moult fleet status --json",
		RunE: f.onFleetUpdate(func(cmd *cobra.Command, c *client, u apiFleetUpdate) error {
			if f.json {
				return printJSON(cmd.OutOrStdout(), u)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "fleet update %s to %s: %s\n", u.ID, printable(u.TargetVersion), u.Status)
			if u.HaltedReason != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "halted: %s\n", printable(u.HaltedReason))
			}
			if u.WaitingFor != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "waiting: %s\n", printable(u.WaitingFor))
			}
			if line := staging(u); line != "" {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			var rows [][]string
			for _, t := range u.Hosts {
				rows = append(rows, []string{fmt.Sprint(t.Position), printable(t.Name), t.Status, dash(t.stagingWords()), dash(t.JobID), dash(t.FailedReason)})
			}
			return printTable(cmd.OutOrStdout(), []string{"#", "HOST", "STATUS", "STAGED", "JOB", "REASON"}, rows)
		}),
	})
	cmd.AddCommand(&cobra.Command{
		Use: "watch [ID]", Short: "Watch a fleet update to its end", Args: cobra.MaximumNArgs(1),
		Long:    "Watch the running (or last) fleet update until it ends. Exits 0 when it completed, 1 when it was halted or cancelled.",
		Example: "  moult fleet watch\n  moult fleet watch > log.txt        # a line per change\n  moult fleet watch --json",
		RunE: f.onFleetUpdate(func(cmd *cobra.Command, c *client, u apiFleetUpdate) error {
			return watchFleetUpdate(cmd.Context(), c, u.ID, cmd.OutOrStdout(), f.json)
		}),
	})
	for verb, short := range map[string]string{
		"pause":  "Stop after the present host",
		"resume": "Go on after a pause",
		"cancel": "Start no further host; the present one goes on to its end",
	} {
		cmd.AddCommand(&cobra.Command{
			Use: verb + " [ID]", Short: short, Args: cobra.MaximumNArgs(1),
			Example: "  moult fleet " + verb,
			RunE: f.onFleetUpdate(func(cmd *cobra.Command, c *client, u apiFleetUpdate) error {
				if err := c.call(cmd.Context(), http.MethodPost, "/api/fleet-updates/"+u.ID+"/"+verb, nil, nil); err != nil {
					return err
				}
				return done(cmd, map[string]any{"fleet_update_id": u.ID, "done": verb}, "done; see it with: moult fleet status")
			}),
		})
	}
	return cmd
}

// onFleetUpdate makes a command's function of one for the fleet update that its
// argument names, or the newest.
func (f *clientFlags) onFleetUpdate(do func(*cobra.Command, *client, apiFleetUpdate) error) func(*cobra.Command, []string) error {
	return f.run(func(cmd *cobra.Command, c *client, args []string) error {
		u, err := findFleetUpdate(cmd.Context(), c, args)
		if err != nil {
			return err
		}
		return do(cmd, c, u)
	})
}

// findFleetUpdate returns the one named, or the newest.
func findFleetUpdate(ctx context.Context, c *client, args []string) (apiFleetUpdate, error) {
	if len(args) > 0 {
		var u apiFleetUpdate
		err := c.call(ctx, http.MethodGet, "/api/fleet-updates/"+args[0], nil, &u)
		return u, err
	}
	all, err := c.fleetUpdates(ctx)
	if err != nil {
		return apiFleetUpdate{}, err
	}
	if len(all) == 0 {
		return apiFleetUpdate{}, errors.New("there was no fleet update yet; start one with: moult fleet update")
	}
	return all[0], nil
}

func newFleetUpdateCommand(f *clientFlags) *cobra.Command {
	var to string
	var yes, watch, dry, servers bool
	var hostNames []string
	cmd := &cobra.Command{
		Use:   "update",
		Short: "Start a fleet update",
		Long: `Start a fleet update: the hosts that are online and behind are brought to the
target one after the other; the first failure halts it.

With --servers the servers take part: after the agents, one at a time, each only while
the others are healthy, caught up and a majority without it. The leader comes last and
hands leadership over first. A server that fails its trial goes back by itself.`,
		Example: "  moult fleet update\n  moult fleet update --servers --dry-run\n  moult fleet update --to 1.4.2 --yes --watch",
		Args:    cobra.NoArgs,
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			if dry {
				return showFleetPlan(cmd, c, to, servers, f.json)
			}
			in := map[string]any{}
			if servers { // older servers do not know the field
				in["servers"] = true
			}
			if to != "" {
				in["target_version"] = to
			}
			if len(hostNames) > 0 {
				ids, err := hostIDs(cmd.Context(), c, hostNames, servers)
				if err != nil {
					return err
				}
				in["host_ids"] = ids
			}
			if !yes {
				n, err := confirmFleetUpdate(cmd, c, to, len(hostNames), servers)
				if err != nil {
					return err
				}
				in["expect_hosts"] = n // or the servers start none: what was confirmed is what is done
			}
			var out struct {
				ID string `json:"fleet_update_id"`
			}
			if err := c.untilHeard(cmd, func(ctx context.Context) error {
				return c.call(ctx, http.MethodPost, "/api/fleet/update", in, &out)
			}); err != nil {
				return err
			}
			if f.json {
				if err := printJSON(cmd.OutOrStdout(), out); err != nil {
					return err
				}
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), out.ID)
			}
			if watch {
				return watchFleetUpdate(cmd.Context(), c, out.ID, cmd.ErrOrStderr(), false)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "started; watch it with: moult fleet watch")
			return nil
		}),
	}
	cmd.Flags().StringVar(&to, "to", "", "target version (default: the newest release)")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show which hosts it would update, in order, who is left out and why; start nothing")
	cmd.Flags().BoolVar(&servers, "servers", false, "the servers take part, after the agents")
	cmd.Flags().BoolVar(&watch, "watch", false, "watch it to its end")
	cmd.Flags().StringSliceVar(&hostNames, "host", nil, "only these hosts, in this order")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "host")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "watch")
	return cmd
}

// unheardPatience is longer than any server needs to have heard of its hosts.
const unheardPatience = time.Minute

// untilHeard repeats a call that a server refuses because it was just started and has
// not heard of all hosts.
func (c *client) untilHeard(cmd *cobra.Command, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), unheardPatience)
	defer cancel()
	for {
		err := call(ctx)
		var refused *apiError
		if !errors.As(err, &refused) || refused.Code != "hosts_unheard" {
			return err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), printable(refused.Message))
		select {
		case <-time.After(statusInterval):
		case <-ctx.Done():
			return err
		}
	}
}

func hostIDs(ctx context.Context, c *client, names []string, servers bool) ([]string, error) {
	hosts, err := c.hosts(ctx, "")
	if err != nil {
		return nil, err
	}
	byName := map[string]string{}
	for _, h := range hosts {
		byName[h.Name], byName[h.ID] = h.ID, h.ID
	}
	if servers {
		list, err := c.servers(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			byName[s.Name], byName[s.ID] = s.ID, s.ID
		}
	}
	var ids []string
	for _, n := range names {
		id, ok := byName[n]
		if !ok {
			return nil, fmt.Errorf("no host is called %q; `moult hosts` lists them (and `moult servers` the servers, which take part with --servers)", n)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// confirmFleetUpdate asks the person to type the number of hosts, and returns it.
func confirmFleetUpdate(cmd *cobra.Command, c *client, to string, named int, servers bool) (int, error) {
	if !onTerminal(cmd) {
		return 0, errors.New("this starts an update of the fleet; give --yes to start it without being asked")
	}
	n := named
	if named == 0 {
		plan, err := c.fleetPlan(cmd.Context(), to, servers)
		if err != nil {
			return 0, err
		}
		n, to = len(plan.Hosts), plan.TargetVersion
		plan.print(cmd.ErrOrStderr())
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "This updates %d hosts to %s, one after the other.\nType the number of hosts to go on: ", n, printable(to))
	line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if strings.TrimSpace(line) != fmt.Sprint(n) {
		return 0, errors.New("not confirmed; nothing was started")
	}
	return n, nil
}

// showFleetPlan prints what a fleet update would do.
func showFleetPlan(cmd *cobra.Command, c *client, to string, servers, asJSON bool) error {
	plan, err := c.fleetPlan(cmd.Context(), to, servers)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), plan)
	}
	var rows [][]string
	for i, h := range plan.Hosts {
		rows = append(rows, []string{fmt.Sprint(i + 1), printable(h.Name), dash(h.Role)})
	}
	if err := printTable(cmd.OutOrStdout(), []string{"#", "HOST", "ROLE"}, rows); err != nil {
		return err
	}
	plan.print(cmd.ErrOrStderr())
	start := "moult fleet update"
	if servers {
		start += " --servers"
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d hosts would go to %s; start it with: %s\n", len(plan.Hosts), printable(plan.TargetVersion), start)
	return nil
}

// print tells who is left out and what to know before it starts.
func (p apiFleetPlan) print(w io.Writer) {
	for i, l := range p.LeftOut {
		if i == maxLeftOutLines {
			fmt.Fprintf(w, "and %d more left out\n", len(p.LeftOut)-i)
			break
		}
		fmt.Fprintf(w, "left out: %s: %s\n", printable(l.Name), printable(l.Why))
	}
	for _, warning := range p.Warnings {
		fmt.Fprintf(w, "warning: %s\n", printable(warning))
	}
}

// maxLeftOutLines bounds what is printed before the question.
const maxLeftOutLines = 20

// fleetPlan asks what a fleet update to a version, "" being the newest release,
// would do now.
func (c *client) fleetPlan(ctx context.Context, to string, servers bool) (plan apiFleetPlan, err error) {
	query := url.Values{}
	if servers {
		query.Set("servers", "true")
	}
	if to != "" {
		query.Set("target_version", to)
	}
	err = c.call(ctx, http.MethodGet, "/api/fleet/plan?"+query.Encode(), nil, &plan)
	return plan, err
}
