package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
)

// Times of waiting for a rotation.
const (
	gossipPoll     = time.Second
	gossipTellWhom = 15 * time.Second // without progress, after which it says who is waited for
)

// apiGossip is how the gossip keys of the segments are.
type apiGossip struct {
	Segments []apiRotation `json:"segments"`
}

type apiRotation struct {
	Segment     string     `json:"segment"`
	Stage       string     `json:"stage"`
	Revision    uint64     `json:"revision"`
	Done        int        `json:"done"`
	Reason      string     `json:"reason"`
	StartedAt   *time.Time `json:"started_at"`
	StartedBy   string     `json:"started_by"`
	CompletedAt *time.Time `json:"completed_at"`
	Hosts       int        `json:"hosts"`
	Confirmed   int        `json:"confirmed"`
	Pending     []struct {
		Name string `json:"name"`
		Why  string `json:"why"`
	} `json:"pending"`
	Offline []string `json:"offline"`
}

// told says for people how a segment's keys are.
func (r apiRotation) told() string {
	switch {
	case r.Stage == "installing":
		return "new key goes to all hosts"
	case r.Stage == "using":
		return "new key encrypts, old one still read"
	case r.CompletedAt != nil:
		return "changed " + ago(r.CompletedAt)
	}
	return "never changed"
}

// waiting names who the next stage waits for.
func (r apiRotation) waiting() string {
	if r.Stage == "" {
		return ""
	}
	var names []string
	for _, h := range r.Pending {
		names = append(names, printable(h.Name))
	}
	return strings.Join(names, ", ")
}

func (c *client) gossip(ctx context.Context) (out apiGossip, err error) {
	err = c.call(ctx, http.MethodGet, "/api/gossip", nil, &out)
	return out, err
}

func (g apiGossip) print(w io.Writer) error {
	var rows [][]string
	for _, r := range g.Segments {
		var offline []string
		for _, name := range r.Offline {
			offline = append(offline, printable(name))
		}
		rows = append(rows, []string{r.Segment, r.told(), fmt.Sprintf("%d of %d", r.Confirmed, r.Hosts), dash(r.waiting()), dash(strings.Join(offline, ", "))})
	}
	return printTable(w, []string{"SEGMENT", "KEYS", "HAVE THEM", "WAITING FOR", "WHEN THEY COME BACK"}, rows)
}

func newGossipCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "gossip", Short: "Show and change the gossip keys of segments",
		Long: `Show and change the keys that gossip is encrypted with, one for each segment. A host
that is removed has those of its segments changed by itself.`,
		Example: "  moult gossip status\n  moult gossip rotate --wait",
	}
	f.register(cmd)
	status := &cobra.Command{
		Use: "status", Short: "Show how the gossip keys of each segment are, and who has them", Args: cobra.NoArgs,
		Example: "  moult gossip status\n  moult gossip status --json",
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			g, err := c.gossip(cmd.Context())
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), g)
			}
			return g.print(cmd.OutOrStdout())
		}),
	}
	cmd.AddCommand(status, newGossipRotateCommand(&f))
	return cmd
}

func newGossipRotateCommand(f *clientFlags) *cobra.Command {
	var segments []string
	var reason string
	var wait, force, yes bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Change the gossip keys of segments, host by host and without an outage",
		Long: `Change the gossip keys of segments, of all when --segment names none.

The servers do it in three steps, whichever of them leads: every host gets the new
key, by TLS and not by gossip; when all hosts that are online have said that they
have it, it encrypts; when all use it, the old one is removed. A host that is off
meanwhile gets the new keys when it comes back. Each step waits for hosts that are
online, or that nobody can see, and do not confirm; 'moult gossip status' names
them. Nothing goes on while a job runs.

With --force and --segment a rotation under way takes its next step without those
hosts: they lose the others until they have asked a server for the keys.`,
		Example: "  moult gossip rotate --wait\n  moult gossip rotate --segment dmz --reason \"key seen in a log\"\n  moult gossip rotate --segment dmz --force",
		Args:    cobra.NoArgs,
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			ctx := cmd.Context()
			before, err := c.gossip(ctx)
			if err != nil {
				return err
			}
			if force {
				if len(segments) != 1 {
					return errors.New("--force is for one segment; name it with --segment")
				}
				if r, ok := before.running(segments[0]); ok {
					return forceRotation(cmd, c, r, yes)
				}
			}
			in := map[string]any{"segments": segments, "reason": reason, "force": force}
			var g apiGossip
			if err := c.call(ctx, http.MethodPost, "/api/gossip/rotate", in, &g); err != nil {
				return err
			}
			if f.json && !wait {
				return printJSON(cmd.OutOrStdout(), g)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "begun; it goes on by itself. Look at it with: moult gossip status")
			if !wait {
				return nil
			}
			if err := awaitRotation(ctx, c, cmd.ErrOrStderr(), segments); err != nil || !f.json {
				return err
			}
			if g, err = c.gossip(ctx); err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), g)
		}),
	}
	cmd.Flags().StringSliceVar(&segments, "segment", nil, "only this segment; may be given several times")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for the end, showing each step")
	cmd.Flags().BoolVar(&force, "force", false, "go on without the hosts that do not confirm, or begin with most hosts off")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask for a confirmation of --force")
	return cmd
}

// running returns a segment whose keys are being changed.
func (g apiGossip) running(segment string) (apiRotation, bool) {
	for _, r := range g.Segments {
		if r.Segment == segment && r.Stage != "" {
			return r, true
		}
	}
	return apiRotation{}, false
}

// forceRotation goes on without the hosts that are waited for, once the person has
// typed how many they are.
func forceRotation(cmd *cobra.Command, c *client, r apiRotation, yes bool) error {
	n, errOut := len(r.Pending), cmd.ErrOrStderr()
	for _, h := range r.Pending {
		fmt.Fprintf(errOut, "  %s: %s\n", printable(h.Name), printable(h.Why))
	}
	if !yes {
		if !onTerminal(cmd) {
			return fmt.Errorf("this goes on without %d hosts; give --yes to do it without being asked", n)
		}
		fmt.Fprintf(errOut, "These %d hosts of segment %s lose the others until they have asked a server for the new keys.\nType the number of hosts to go on: ", n, printable(r.Segment))
		line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		if strings.TrimSpace(line) != fmt.Sprint(n) {
			return errors.New("not confirmed; nothing was changed")
		}
	}
	if err := c.call(cmd.Context(), http.MethodPost, "/api/gossip/"+url.PathEscape(r.Segment)+"/force", map[string]any{"expect_pending": n}, nil); err != nil {
		return err
	}
	return done(cmd, map[string]any{"segment": r.Segment, "forced": n}, "gone on; look at it with: moult gossip status")
}

// awaitRotation shows each step until no segment of these, all when none is named,
// is being changed any more.
func awaitRotation(ctx context.Context, c *client, w io.Writer, segments []string) error {
	last, since := map[string]string{}, time.Now()
	for {
		g, err := c.gossip(ctx)
		if err != nil {
			return err
		}
		running := 0
		for _, r := range g.Segments {
			if len(segments) > 0 && !slices.Contains(segments, r.Segment) {
				continue
			}
			if r.Stage != "" {
				running++
			}
			told := fmt.Sprintf("%s: %s (%d of %d hosts)", r.Segment, r.told(), r.Confirmed, r.Hosts)
			if r.CompletedAt != nil && r.Stage == "" {
				told = r.Segment + ": changed"
			}
			if last[r.Segment] != told {
				fmt.Fprintln(w, told)
				last[r.Segment], since = told, time.Now()
			} else if names := r.waiting(); names != "" && time.Since(since) > gossipTellWhom {
				fmt.Fprintf(w, "%s: waiting for %s; to go on without them: moult gossip rotate --segment %s --force\n", r.Segment, names, r.Segment)
				since = time.Now()
			}
		}
		if running == 0 {
			return nil
		}
		if !nodekit.Sleep(ctx, gossipPoll) {
			return ctx.Err()
		}
	}
}
