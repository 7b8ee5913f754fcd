package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
)

// apiCA is the cluster's CA, and how far its change is.
type apiCA struct {
	Number   uint64     `json:"number"`
	SHA256   string     `json:"sha256"`
	Ends     time.Time  `json:"ends"`
	UICA     string     `json:"ui_ca"`
	UISHA256 string     `json:"ui_ca_sha256"`
	Stage    string     `json:"stage"`
	Next     *apiNextCA `json:"next"`

	OldSHA256   string     `json:"old_sha256"`
	Reason      string     `json:"reason"`
	StartedAt   *time.Time `json:"started_at"`
	StartedBy   string     `json:"started_by"`
	SwitchedAt  *time.Time `json:"switched_at"`
	CompletedAt *time.Time `json:"completed_at"`
	Hosts       int        `json:"hosts"`
	Confirmed   int        `json:"confirmed"`
	Pending     []struct {
		Name string `json:"name"`
		Role string `json:"role"`
		Why  string `json:"why"`
	} `json:"pending"`
	GossipPending []string `json:"gossip_pending"`
}

type apiNextCA struct {
	Number   uint64    `json:"number"`
	SHA256   string    `json:"sha256"`
	Ends     time.Time `json:"ends"`
	UICA     string    `json:"ui_ca"`
	UISHA256 string    `json:"ui_ca_sha256"`
}

func (c *client) ca(ctx context.Context) (out apiCA, err error) {
	err = c.call(ctx, http.MethodGet, "/api/ca", nil, &out)
	return out, err
}

// The stages of a change, as the API names them.
const (
	caPrepared = "prepared"
	caSwitched = "switched"
)

// told says for people how far the change is.
func (a apiCA) told() string {
	switch {
	case a.Stage == caPrepared:
		return "prepared: hosts get to trust the new CA; the old one signs"
	case a.Stage == caSwitched:
		return "switched: the new CA signs, hosts renew under it; the old one is still trusted"
	case a.CompletedAt != nil:
		return "changed " + ago(a.CompletedAt)
	}
	return "never changed"
}

// waiting names who has not followed.
func (a apiCA) waiting() string {
	var names []string
	for _, h := range a.Pending {
		names = append(names, printable(h.Name))
	}
	return strings.Join(names, ", ")
}

func (a apiCA) print(w io.Writer) error {
	fmt.Fprintf(w, "CA        number %d, sha256 %s, until %s\n", a.Number, a.SHA256, a.Ends.Local().Format(time.DateOnly))
	fmt.Fprintf(w, "UI CA     sha256 %s\n", a.UISHA256)
	fmt.Fprintf(w, "change    %s\n", a.told())
	if a.Stage != "" && a.StartedAt != nil {
		fmt.Fprintf(w, "begun     %s by %s%s\n", ago(a.StartedAt), printable(a.StartedBy), colon(printable(a.Reason)))
	}
	if a.Next != nil {
		fmt.Fprintf(w, "next CA   number %d, sha256 %s, until %s\n", a.Next.Number, a.Next.SHA256, a.Next.Ends.Local().Format(time.DateOnly))
		fmt.Fprintf(w, "next UI CA  sha256 %s\n", a.Next.UISHA256)
	}
	if a.OldSHA256 != "" {
		fmt.Fprintf(w, "old CA    sha256 %s\n", a.OldSHA256)
	}
	fmt.Fprintf(w, "followed  %d of %d hosts\n", a.Confirmed, a.Hosts)
	if len(a.GossipPending) > 0 {
		fmt.Fprintf(w, "gossip    keys to change before the old CA is retired: %s\n", strings.Join(a.GossipPending, ", "))
	}
	if a.Stage != "" {
		fmt.Fprintln(w, "next      moult ca rotate")
	}
	if len(a.Pending) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, h := range a.Pending {
		rows = append(rows, []string{printable(h.Name), h.Role, printable(h.Why)})
	}
	return printTable(w, []string{"NOT FOLLOWED", "ROLE", "WHY"}, rows)
}

func colon(text string) string {
	if text == "" {
		return ""
	}
	return ": " + text
}

func newCACommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{Use: "ca", Short: "Show and change the cluster's CA", Example: "  moult ca status\n  moult ca rotate --reason yearly --ui-ca ui-ca.pem"}
	f.register(cmd)
	status := &cobra.Command{
		Use: "status", Short: "Show the cluster's CA, how far its change is, and who has not followed", Args: cobra.NoArgs,
		Example: "  moult ca status\n  moult ca status --json",
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			a, err := c.ca(cmd.Context())
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), a)
			}
			return a.print(cmd.OutOrStdout())
		}),
	}
	cmd.AddCommand(status, newCARotateCommand(&f))
	return cmd
}

func newCARotateCommand(f *clientFlags) *cobra.Command {
	var r caRotation
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Change the cluster's CA, step by step and without an outage",
		Long: `Change the CA that signs all certificates of the cluster.

  prepare   a new CA is made, and every host gets to trust it beside the old one
  switch    the new CA signs: servers and agents renew under it; the gossip keys of
            all segments are changed
  retire    nobody trusts the old CA any more

Each step waits until all hosts have followed the one before; 'moult ca status'
names those that have not. With --force a step goes on without them. An agent that was
off all the time finds back by itself: its old certificate is still good to ask a
server for a new one, which the servers give for the key that it is enrolled with.

It can be stopped at any time: run it again, and it goes on where it was. With --step it
takes one step and ends. At the switch the UI's CA changes too: this command trusts the
new one by then; browsers and other clients have to be given it.`,
		Example: "  moult ca rotate --reason \"yearly\" --ui-ca ui-ca.pem\n  moult ca rotate --step\n  moult ca rotate --force   # without the hosts that are off",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			r.flags, r.client, r.cmd, r.out = f, c, cmd, cmd.ErrOrStderr()
			r.in = bufio.NewReader(cmd.InOrStdin())
			a, err := r.run(cmd.Context())
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), a)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&r.reason, "reason", "", "why, for the audit")
	cmd.Flags().BoolVar(&r.step, "step", false, "take one step, or wait until it can be taken, and end")
	cmd.Flags().BoolVar(&r.force, "force", false, "go on without the hosts that do not follow")
	cmd.Flags().BoolVar(&r.yes, "yes", false, "do not ask for confirmations")
	cmd.Flags().StringVar(&r.uiCA, "ui-ca", "", "file that gets the UI's next CA, as soon as there is one")
	return cmd
}

// Times of a rotation, as this command sees it.
const (
	caPoll = time.Second
	// caPatience is how long a step that is to be forced waits for hosts that follow by
	// themselves, since the last one did.
	caPatience = 20 * time.Second
	// caUnreachable is how long no server may answer, or accept a step: an election.
	caUnreachable = 2 * time.Minute
)

// caRotation carries a change of the CA on, from wherever it is.
type caRotation struct {
	reason, uiCA     string
	step, force, yes bool

	flags  *clientFlags
	client *client
	cmd    *cobra.Command
	in     *bufio.Reader
	out    io.Writer

	last     string    // what was told last
	since    time.Time // when that was
	steps    int
	seen     bool      // a change under way; when there is none any more, this one is done
	failing  time.Time // since when nothing works; zero: it does
	uiCAKept string    // sha256 of the UI CA that is trusted in addition
}

func (r *caRotation) run(ctx context.Context) (a apiCA, err error) {
	for {
		a, err = r.client.ca(ctx)
		if err == nil && a.Stage == "" && r.seen {
			r.tellEnd(a)
			return a, nil
		}
		if err == nil && r.step && r.steps > 0 {
			fmt.Fprintln(r.out, a.told())
			return a, nil
		}
		if err == nil {
			err = r.once(ctx, a)
		}
		switch {
		case err == nil:
			r.failing = time.Time{}
		case !retryable(err):
			return a, err
		case r.failing.IsZero():
			r.failing = time.Now()
			fmt.Fprintf(r.out, "no answer now, trying again: %v\n", err)
		case time.Since(r.failing) > caUnreachable:
			return a, fmt.Errorf("%w; run it again when a majority of the servers is up: it goes on where it was", err)
		}
		if !nodekit.Sleep(ctx, caPoll) {
			return a, ctx.Err()
		}
	}
}

// retryable tells whether the next leader may do better. A step names the stage that
// it begins at, so one that was taken although the answer got lost is not repeated.
func retryable(err error) bool {
	var refused *apiError
	var unknown x509.UnknownAuthorityError
	var transport *url.Error
	switch {
	case errors.As(err, &refused):
		return refused.Status >= http.StatusInternalServerError
	case errors.As(err, &unknown), errors.Is(err, context.Canceled):
		return false
	}
	return errors.Is(err, errUnreachable) || errors.As(err, &transport)
}

// once looks, and takes the next step if its time has come.
func (r *caRotation) once(ctx context.Context, a apiCA) error {
	if a.Stage == "" {
		return r.begin(ctx, a)
	}
	r.seen = true
	if err := r.keepUICA(a); err != nil {
		return err
	}
	if told := fmt.Sprintf("%s (%d of %d hosts)", a.told(), a.Confirmed, a.Hosts); told != r.last {
		fmt.Fprintln(r.out, told)
		r.last, r.since = told, time.Now()
	}
	if a.Stage == caSwitched && len(a.GossipPending) > 0 {
		return r.rotateGossip(ctx, a)
	}
	in := map[string]any{"from": a.Stage}
	if n := len(a.Pending); n > 0 {
		if waited := time.Since(r.since); !r.force || waited < caPatience {
			if waited > gossipTellWhom && !r.force {
				fmt.Fprintf(r.out, "waiting for %s; why: moult ca status; to go on without them: moult ca rotate --force\n", a.waiting())
				r.since = time.Now()
			}
			return nil
		}
		if err := r.confirmForce(a); err != nil {
			return err
		}
		in["force"], in["expect_pending"] = true, n
	}
	return r.took(r.client.call(ctx, http.MethodPost, "/api/ca/advance", in, nil))
}

// took counts a step. One that hosts came between is tried again.
func (r *caRotation) took(err error) error {
	var refused *apiError
	if errors.As(err, &refused) && (refused.Code == "hosts_pending" && !r.force || refused.Code == "hosts_changed" || refused.Code == "rotation_running") {
		return nil
	}
	if err == nil {
		r.steps++
		r.seen = true
	}
	return err
}

func (r *caRotation) begin(ctx context.Context, a apiCA) error {
	if !r.yes {
		if !onTerminal(r.cmd) {
			return errors.New("this changes the CA of the whole cluster; give --yes to do it without being asked")
		}
		fmt.Fprintf(r.out, "This changes the CA of the whole cluster, sha256 %s, of which %d hosts have certificates.\nType the number of hosts to go on: ", a.SHA256, a.Hosts)
		if !r.typed(a.Hosts) {
			return errors.New("not confirmed; nothing was changed")
		}
	}
	return r.took(r.client.call(ctx, http.MethodPost, "/api/ca/rotate", map[string]any{"reason": r.reason}, nil))
}

func (r *caRotation) typed(n int) bool {
	line, _ := r.in.ReadString('\n')
	return strings.TrimSpace(line) == fmt.Sprint(n)
}

func (r *caRotation) confirmForce(a apiCA) error {
	for _, h := range a.Pending {
		fmt.Fprintf(r.out, "  %s: %s\n", printable(h.Name), printable(h.Why))
	}
	if r.yes {
		return nil
	}
	if !onTerminal(r.cmd) {
		return fmt.Errorf("this goes on without %d hosts; give --yes to do it without being asked", len(a.Pending))
	}
	fmt.Fprintf(r.out, "These %d hosts are out of touch with the others until they have asked a server.\nType the number of hosts to go on: ", len(a.Pending))
	if !r.typed(len(a.Pending)) {
		return errors.New("not confirmed; the change stays where it is")
	}
	return nil
}

// rotateGossip has the gossip keys changed of segments where that is not under way.
func (r *caRotation) rotateGossip(ctx context.Context, a apiCA) error {
	g, err := r.client.gossip(ctx)
	if err != nil {
		return err
	}
	var segments []string
	for _, name := range a.GossipPending {
		if rotation, running := g.running(name); running {
			if names := rotation.waiting(); names != "" && time.Since(r.since) > gossipTellWhom {
				fmt.Fprintf(r.out, "the gossip keys of %s wait for %s; to go on without them: moult gossip rotate --segment %s --force\n", name, names, name)
				r.since = time.Now()
			}
			continue
		}
		segments = append(segments, name)
	}
	if len(segments) == 0 {
		return nil
	}
	in := map[string]any{"segments": segments, "reason": "change of the CA", "force": r.force}
	if err := r.client.call(ctx, http.MethodPost, "/api/gossip/rotate", in, nil); err != nil {
		var refused *apiError
		if errors.As(err, &refused) && refused.Code == "rotation_running" {
			return nil // another one has begun it
		}
		return err
	}
	fmt.Fprintf(r.out, "new gossip keys for %s\n", strings.Join(segments, ", "))
	r.since = time.Now()
	return nil
}

// keepUICA trusts the UI's next CA before the servers show it, and writes it.
func (r *caRotation) keepUICA(a apiCA) error {
	pem, hash := a.UICA, a.UISHA256
	if a.Next != nil {
		pem, hash = a.Next.UICA, a.Next.UISHA256
	}
	if r.uiCAKept == hash {
		return nil
	}
	r.uiCAKept = hash
	trust, err := r.flags.trustAlso(pem, hash)
	if err != nil {
		return err
	}
	if trust != nil {
		r.client.http = newAPIClient(trust)
	}
	if r.uiCA == "" {
		return nil
	}
	if err := nodekit.WriteFileAtomic(r.uiCA, []byte(pem), 0o644); err != nil {
		return fmt.Errorf("write --ui-ca: %w", err)
	}
	fmt.Fprintf(r.out, "the UI's CA after the switch is in %s: give it to browsers, and to clients as --ca\n", r.uiCA)
	return nil
}

func (r *caRotation) tellEnd(a apiCA) {
	fmt.Fprintf(r.out, "done: CA number %d, sha256 %s\n", a.Number, a.SHA256)
	fmt.Fprintf(r.out, "the UI's CA is another one: sha256 %s; give it to browsers, and to clients as --ca or --ca-sha256 (each server has it as DATA/%s)\n", a.UISHA256, uiCAFile)
	fmt.Fprintln(r.out, "Make a backup now: those from before hold the retired CA, which no host trusts any more. Destroy them.")
	if names := a.waiting(); names != "" {
		fmt.Fprintf(r.out, "not followed yet, and will when they are back: %s\n", names)
	}
}
