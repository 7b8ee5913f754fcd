package main

import (
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
)

func newReleaseStageCommand(f *clientFlags) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "stage VERSION", Short: "Have all hosts fetch and verify a release ahead of their turn", Args: cobra.ExactArgs(1),
		Long: `Have all hosts fetch and verify a release in the background. Nothing is installed: an
update to it then is a restart. The hosts of a fleet update stage by themselves when
it starts, so this is for the hours before. One release at a time is staged for all
hosts; a withdrawn one is dropped. With --wait the exit code is 1 when a host that is
online could not stage it, and stderr says why; an interrupt ends the waiting alone.`,
		Example: "  moult release stage 1.4.2\n  moult release stage 1.4.2 --wait",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			version := args[0]
			if err := c.call(cmd.Context(), http.MethodPost, "/api/releases/"+url.PathEscape(version)+"/stage", nil, nil); err != nil {
				return err
			}
			if !wait {
				return done(cmd, map[string]any{"staging": version}, "all hosts stage release %s in the background; how far they are: moult release list", printable(version))
			}
			progress := cmd.ErrOrStderr()
			if f.json {
				progress = io.Discard
			}
			last, err := awaitStaged(cmd.Context(), func(ctx context.Context) (apiReleaseStaging, error) { return stagingOf(ctx, c, version) }, progress)
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"staging": version, "hosts": last.Hosts, "staged": last.Staged})
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until all hosts that are online have it, showing how far they are")
	return cmd
}

// stagingStuck is how long none of the hosts may be on its way before those that
// failed have: the leader tells them again every 15 s.
const stagingStuck = 20 * time.Second

// stagingSilent is how long all may stand still while some have not said that they cannot:
// agents of an older moult say nothing.
const stagingSilent = 2 * time.Minute

// stagingUnheard is longer than any server needs to hear of the order to stage.
const stagingUnheard = 5 * time.Second

var errNotStaged = errors.New("not all hosts stage the release")

// awaitStaged shows how far the hosts are with a release, as ask tells, until all of
// them have it.
func awaitStaged(ctx context.Context, ask func(context.Context) (apiReleaseStaging, error), w io.Writer) (last apiReleaseStaging, err error) {
	view := &stagingView{w: w}
	_, view.redraws = canRedraw(w)
	defer view.end()
	onTheirWay, changed := time.Now(), time.Now()
	err = poll(ctx, ask, func(s apiReleaseStaging) (ended bool, err error) {
		view.show(s)
		if s.Staged+s.Failed < s.Hosts {
			onTheirWay = time.Now()
		}
		if s.Staged != last.Staged || s.Failed != last.Failed || s.Done != last.Done {
			changed = time.Now()
		}
		last = s
		switch {
		case s.Staged == s.Hosts:
			return true, nil
		case time.Since(onTheirWay) > stagingStuck || time.Since(changed) > stagingSilent:
			return true, errors.New(s.problem())
		}
		return false, nil
	})
	return last, err
}

// stagingOf asks how far the hosts are with a release.
func stagingOf(ctx context.Context, c *client, version string) (apiReleaseStaging, error) {
	list, err := c.releases(ctx)
	if err != nil {
		return apiReleaseStaging{}, err
	}
	i := slices.IndexFunc(list, func(r apiRelease) bool { return r.Version == version })
	switch {
	case i < 0 || !list[i].Staged:
		return apiReleaseStaging{}, fmt.Errorf("%w %s: it was withdrawn, or another one is staged; see moult release list", errNotStaged, printable(version))
	case list[i].Staging == nil:
		return apiReleaseStaging{}, fmt.Errorf("%w %s as far as this server tells; it may run an older moult; see moult fleet status", errNotStaged, printable(version))
	}
	return *list[i].Staging, nil
}

// String tells it in a few words.
func (s apiReleaseStaging) String() string {
	text := fmt.Sprintf("staged on %d of %d hosts", s.Staged, s.Hosts)
	if s.Failed > 0 {
		text += fmt.Sprintf(", %d cannot", s.Failed)
	}
	return text
}

// problem tells which hosts cannot have the release, and why.
func (s apiReleaseStaging) problem() string {
	lines := []string{s.String() + "; they are told again every ten minutes, and fetch it at their turn:"}
	for _, r := range s.Reasons {
		lines = append(lines, "  "+printable(r.Name)+": "+printable(r.Reason))
	}
	if more := s.Failed - len(s.Reasons); more > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more", more))
	}
	if silent := s.Hosts - s.Staged - s.Failed; silent > 0 {
		lines = append(lines, fmt.Sprintf("  %d more did not say for %v that they are getting it", silent, stagingSilent))
	}
	return strings.Join(lines, "\n")
}

// stagingView shows how far the hosts are: one line that is drawn again on a terminal,
// elsewhere a line whenever a host has it or cannot.
type stagingView struct {
	w       io.Writer
	redraws bool
	last    string
}

func (v *stagingView) show(s apiReleaseStaging) {
	line := s.String()
	if v.redraws && s.Total > 0 {
		line += " " + progressBar(s.Done, s.Total)
	}
	if line == v.last {
		return
	}
	v.last = line
	if v.redraws {
		fmt.Fprintf(v.w, "\r\x1b[K%s", line)
		return
	}
	fmt.Fprintf(v.w, "%s %s\n", time.Now().Format("15:04:05"), line)
}

// end leaves the terminal's line.
func (v *stagingView) end() {
	if v.redraws && v.last != "" {
		fmt.Fprintln(v.w)
	}
}

// stagingWords tells whether a host has the release before its turn, or how far it is
// with it; "" when neither is known.
func (t apiStaged) stagingWords() string {
	switch {
	case t.Staged:
		return "yes"
	case t.Staging == nil:
		return ""
	case t.Staging.State == "awaits_patch":
		return "awaits a patch"
	case t.Staging.State == "failed":
		return "no: " + printable(t.Staging.Reason)
	default:
		return fmt.Sprintf("%d %%", t.Staging.Done*100/max(t.Staging.Total, 1))
	}
}
