package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"
)

// watchInterval is how often a watched fleet update is asked for.
const watchInterval = 400 * time.Millisecond

// watchPatience is how long a watch goes on while no server answers.
const watchPatience = 60 * time.Second

// watchFleetUpdate shows a fleet update until it ends: a live table on a
// terminal, a line per change elsewhere. A server that dies meanwhile only
// costs a pause, as long as another address answers.
func watchFleetUpdate(ctx context.Context, c *client, id string, w io.Writer, asJSON bool) error {
	var view watchView = &plainWatch{w: w, seen: map[string]string{}}
	if f, ok := canRedraw(w); ok && !asJSON {
		view = newLiveWatch(f)
	}
	if asJSON {
		view = &jsonWatch{w: w}
	}
	lastAnswer, left := time.Now(), math.MaxInt
	for {
		u, hosts, err := watchOnce(ctx, c, id)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case isFinal(err):
			return err
		case err != nil && time.Since(lastAnswer) > watchPatience:
			return err
		case err == nil && unended(u) > left:
			lastAnswer = time.Now() // of a server that has just started and is not caught up
		case err == nil:
			lastAnswer, left = time.Now(), unended(u)
			view.show(u, hosts)
			switch u.Status {
			case "completed":
				return nil
			case "halted":
				return fmt.Errorf("halted: %s", printable(u.HaltedReason))
			case "cancelled":
				if u.CurrentHostID == "" {
					return errors.New("cancelled")
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchInterval):
		}
	}
}

// unended counts the turns to come or under way: they never become more.
func unended(u apiFleetUpdate) (n int) {
	for _, t := range u.Hosts {
		if t.Status == "pending" || t.Status == "running" {
			n++
		}
	}
	return n
}

func watchOnce(ctx context.Context, c *client, id string) (apiFleetUpdate, map[string]apiHost, error) {
	var u apiFleetUpdate
	if err := c.call(ctx, http.MethodGet, "/api/fleet-updates/"+id, nil, &u); err != nil {
		return u, nil, err
	}
	list, err := c.hosts(ctx, "")
	hosts := map[string]apiHost{}
	for _, h := range list {
		hosts[h.ID] = h
	}
	return u, hosts, err
}

// isFinal tells an answer that waiting does not change: 4xx.
func isFinal(err error) bool {
	var e *apiError
	return errors.As(err, &e) && e.Status < 500
}

type watchView interface {
	show(apiFleetUpdate, map[string]apiHost)
}

// plainWatch prints a line for each change of a host's turn.
type plainWatch struct {
	w    io.Writer
	seen map[string]string
}

func (p *plainWatch) show(u apiFleetUpdate, hosts map[string]apiHost) {
	for _, t := range u.Hosts {
		state := turnState(t, hosts[t.HostID])
		if t.Status == "pending" || p.seen[t.HostID] == state {
			continue
		}
		p.seen[t.HostID] = state
		fmt.Fprintf(p.w, "%s %d/%d %s: %s\n", time.Now().Format("15:04:05"), t.Position, len(u.Hosts), printable(t.Name), state)
	}
	if line := staging(u); line != "" && p.seen["staging"] != line {
		p.seen["staging"] = line
		fmt.Fprintf(p.w, "%s %s\n", time.Now().Format("15:04:05"), line)
	}
	if u.WaitingFor != "" && p.seen["waiting"] != u.WaitingFor {
		fmt.Fprintf(p.w, "%s waiting: %s\n", time.Now().Format("15:04:05"), printable(u.WaitingFor))
	}
	p.seen["waiting"] = u.WaitingFor
	if p.seen[""] != u.Status {
		p.seen[""] = u.Status
		fmt.Fprintf(p.w, "%s fleet update to %s: %s\n", time.Now().Format("15:04:05"), printable(u.TargetVersion), u.Status)
	}
}

// staging tells how many of the hosts to come have the release already; "" when none
// is to come.
func staging(u apiFleetUpdate) string {
	pending, staged := 0, 0
	for _, t := range u.Hosts {
		if t.Status == "pending" {
			pending++
		}
		if t.Staged {
			staged++
		}
	}
	if pending == 0 {
		return ""
	}
	return fmt.Sprintf("staged: %d of %d hosts to come", staged, pending)
}

// phaseOf is what a host whose turn it is shows; servers are not among the hosts.
func phaseOf(t apiTurn, h apiHost) string { return cmp.Or(h.Phase, t.Phase) }

func turnState(t apiTurn, h apiHost) string {
	s := t.Status
	if t.Staged {
		s += ", staged"
	}
	if phase := phaseOf(t, h); t.Status == "running" && phase != "" && phase != "idle" {
		s += ", " + phase
	}
	if t.FailedReason != "" {
		s += ": " + printable(t.FailedReason)
	}
	return s
}

// jsonWatch prints the fleet update as it stands, whenever it changed.
type jsonWatch struct {
	w    io.Writer
	last string
}

func (j *jsonWatch) show(u apiFleetUpdate, _ map[string]apiHost) {
	var b strings.Builder
	if printJSON(&b, u) == nil && b.String() != j.last {
		j.last = b.String()
		io.WriteString(j.w, j.last) //nolint:errcheck // a closed pipe ends the watch by its signal
	}
}
