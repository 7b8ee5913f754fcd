package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completionTimeout bounds what the shell waits for the cluster. Who presses Tab
// gets no names then, and no error.
const completionTimeout = 900 * time.Millisecond

// maxCompletions bounds what the shell is handed; a longer beginning finds the rest.
const maxCompletions = 500

// lister lists what could stand at a place, as "name\twhat it is".
type lister func(ctx context.Context, c *client) ([]string, error)

// completion says what the shell offers for a command: for its arguments, the last
// one again and again, and for its flags.
type completion struct {
	args   []lister
	once   bool // one argument each, no more
	flags  map[string]lister
	byFile []string // endings of the files that are its argument
}

// completions are by command, as in "moult host show".
func completions() map[string]completion {
	host, onlyHost := completion{args: []lister{listHosts}}, completion{args: []lister{listHosts}, once: true}
	update := completion{args: []lister{listFleetUpdates}, once: true}
	job := completion{args: []lister{listJobs}, once: true}
	user := completion{args: []lister{listUsers}, once: true}
	server := completion{args: []lister{listServers}, once: true}
	roles := words("admin\tmay do everything", "operator\tmay also acknowledge, pause and resume", "viewer\tlooks")
	segment := map[string]lister{"segment": listSegments}
	tls := map[string]lister{
		"tls":         words("auto\ton beyond loopback", "on", "off"),
		"unreachable": words("offline\tit fails the fleet update", "wait\tit is waited for, then as offline"),
	}
	return map[string]completion{
		"hosts": {flags: map[string]lister{
			"status": words("online", "offline", "unreachable", "left"), "segment": listSegments, "label": listLabels,
		}},
		"host show": onlyHost, "host update": onlyHost, "host remove": onlyHost, "host readmit": onlyHost, "host label": host,
		"fleet status": update, "fleet watch": update, "fleet summary": update,
		"fleet pause": update, "fleet resume": update, "fleet cancel": update,
		"fleet update": {flags: map[string]lister{"to": listVersions, "host": listHosts}},
		"job show":     job, "job log": job,
		"alerts acknowledge": {args: []lister{listAlerts}, once: true},
		"release withdraw":   {args: []lister{listVersions}, once: true},
		"user add":           {flags: map[string]lister{"role": roles}},
		"user password":      user, "user remove": user,
		"user role":      {args: []lister{listUsers, roles}, once: true},
		"servers remove": server, "servers demote": server, "servers promote": server,
		"servers replace": {args: []lister{listServers}, once: true, flags: map[string]lister{"with": listServers}},
		"token create": {flags: map[string]lister{
			"role": words("agent", "server"), "segment": listSegments, "relay": listRelays,
		}},
		"gossip rotate":  {flags: segment},
		"server":         {flags: tls},
		"config example": {args: []lister{words(configRoles...)}, once: true},
		"config check":   {byFile: []string{"toml"}, flags: map[string]lister{"role": words(configRoles...)}},
	}
}

// completeFromCluster has the shell offer what the cluster knows.
func completeFromCluster(root *cobra.Command) {
	for path, c := range completions() {
		cmd, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 {
			panic("completion for a command that does not exist: " + path) // a test runs this
		}
		switch {
		case c.byFile != nil:
			cmd.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				return c.byFile, cobra.ShellCompDirectiveFilterFileExt
			}
		case cmd.Runnable():
			cmd.ValidArgsFunction = c.argument
		}
		for flag, list := range c.flags {
			err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
				return offer(cmd, list, begun)
			})
			if err != nil {
				panic("completion for " + path + ": " + err.Error())
			}
		}
	}
}

func (c completion) argument(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(c.args) == 0 || c.once && len(args) >= len(c.args) || !c.once && len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return offer(cmd, c.args[len(args)], begun)
}

// offer lists what begins as typed. Whatever goes wrong, nothing is offered.
func offer(cmd *cobra.Command, list lister, begun string) ([]string, cobra.ShellCompDirective) {
	const nothingElse = cobra.ShellCompDirectiveNoFileComp
	if err := loadSettings(cmd); err != nil {
		return nil, nothingElse
	}
	ctx, cancel := context.WithTimeout(contextOf(cmd), completionTimeout)
	defer cancel()
	found, err := list(ctx, clientOf(cmd))
	if err != nil {
		return nil, nothingElse
	}
	found = slices.DeleteFunc(found, func(line string) bool {
		name, _, _ := strings.Cut(line, "\t")
		return !strings.HasPrefix(name, begun)
	})
	return found[:min(len(found), maxCompletions)], nothingElse | cobra.ShellCompDirectiveKeepOrder
}

// clientOf is the client that a command's flags describe; nil when they are no good.
func clientOf(cmd *cobra.Command) *client {
	text := func(flag string) string {
		v, _ := cmd.Flags().GetString(flag)
		return v
	}
	f := clientFlags{addr: text("addr"), token: text("token"), tokenFile: text("token-file"), ca: text("ca"), caHash: text("ca-sha256")}
	c, err := f.client()
	if err != nil {
		return nil
	}
	return c
}

// ask reads from whichever server answers first: one that is cut off would use up
// the time.
func ask[T any](ctx context.Context, c *client, path string) (out T, err error) {
	if c == nil {
		return out, errUnreachable
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		out T
		err error
	}
	answers := make(chan answer, len(c.addrs))
	for _, addr := range c.addrs {
		go func() {
			var a answer
			one := client{addrs: []string{addr}, token: c.token, http: c.http}
			a.err = one.call(ctx, http.MethodGet, path, nil, &a.out)
			answers <- a
		}()
	}
	for range c.addrs {
		select {
		case a := <-answers:
			if a.err == nil {
				return a.out, nil
			}
			err = a.err
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
	return out, err
}

// words lists what is known without asking.
func words(list ...string) lister {
	return func(context.Context, *client) ([]string, error) { return slices.Clone(list), nil }
}

// described is one line for the shell: the name, and what it is.
func described(name string, what ...string) string {
	what = slices.DeleteFunc(what, func(s string) bool { return s == "" })
	return printable(name) + "\t" + printable(strings.ReplaceAll(strings.Join(what, ", "), "\t", " "))
}

type hostsAnswer struct{ Hosts []apiHost }

func listHosts(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[hostsAnswer](ctx, c, "/api/hosts")
	for _, h := range a.Hosts {
		lines = append(lines, described(h.Name, h.status(), h.AgentVersion))
	}
	return lines, err
}

func listRelays(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[hostsAnswer](ctx, c, "/api/hosts")
	for _, h := range a.Hosts {
		if len(h.AlsoSegments) > 0 {
			lines = append(lines, described(h.Name, h.Segment+" to "+strings.Join(h.AlsoSegments, ", ")))
		}
	}
	return lines, err
}

func listLabels(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[hostsAnswer](ctx, c, "/api/hosts")
	for _, h := range a.Hosts {
		for k, v := range h.Labels {
			lines = append(lines, printable(k+"="+v))
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines), err
}

func listSegments(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[struct {
		Segments []struct{ Name string }
	}](ctx, c, "/api/segments")
	for _, s := range a.Segments {
		lines = append(lines, printable(s.Name))
	}
	return lines, err
}

func listFleetUpdates(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[struct {
		FleetUpdates []apiFleetUpdate `json:"fleet_updates"`
	}](ctx, c, "/api/fleet-updates")
	for _, u := range a.FleetUpdates {
		lines = append(lines, described(u.ID, "to "+u.TargetVersion, u.Status, "started "+ago(u.StartedAt)))
	}
	return lines, err
}

func listJobs(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[struct {
		FleetUpdates []apiFleetUpdate `json:"fleet_updates"`
	}](ctx, c, "/api/fleet-updates")
	for _, u := range a.FleetUpdates {
		for _, t := range u.Hosts {
			if t.JobID != "" {
				lines = append(lines, described(t.JobID, t.Name, "to "+u.TargetVersion, t.Status))
			}
		}
	}
	return lines, err
}

func listVersions(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[struct{ Releases []apiRelease }](ctx, c, "/api/releases")
	for _, r := range a.Releases {
		if r.Available {
			lines = append(lines, described(r.Version, fmt.Sprintf("number %d", r.Number)))
		}
	}
	return lines, err
}

func listAlerts(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[apiAlerts](ctx, c, "/api/alerts")
	for _, alert := range a.Alerts {
		if alert.Status == "open" {
			lines = append(lines, described(alert.ID, alert.Kind, alert.Message))
		}
	}
	return lines, err
}

func listUsers(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[struct{ Users []apiUser }](ctx, c, "/api/users")
	for _, u := range a.Users {
		lines = append(lines, described(u.Name, u.Role))
	}
	return lines, err
}

func listServers(ctx context.Context, c *client) (lines []string, err error) {
	a, err := ask[struct{ Servers []apiServer }](ctx, c, "/api/servers")
	for _, s := range a.Servers {
		role := ""
		if s.Leader {
			role = "leader"
		}
		lines = append(lines, described(s.Name, role, s.Version))
	}
	return lines, err
}
