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
// terminal, a line per change elsewhere.
func watchFleetUpdate(ctx context.Context, c *client, id string, w io.Writer, asJSON bool) error {
	var view watchView = &plainWatch{w: w, seen: map[string]string{}}
	if f, ok := canRedraw(w); ok && !asJSON {
		view = newLiveWatch(f)
	}
	if asJSON {
		view = &jsonWatch{w: w}
	}
	left := math.MaxInt
	ask := func(ctx context.Context) (fleetSight, error) { return watchOnce(ctx, c, id) }
	return poll(ctx, ask, func(seen fleetSight) (ended bool, err error) {
		u := seen.update
		if unended(u) > left {
			return false, nil // of a server that has just started and is not caught up
		}
		left = unended(u)
		view.show(u, seen.hosts)
		switch u.Status {
		case "completed":
			return true, nil
		case "halted":
			return true, fmt.Errorf("halted: %s", printable(u.HaltedReason))
		case "cancelled":
			if u.CurrentHostID == "" {
				return true, errors.New("cancelled")
			}
		}
		return false, nil
	})
}

// poll asks again and again until look says that this is the end, or an error is one. A
// server that dies meanwhile only costs a pause, as long as another address answers.
func poll[T any](ctx context.Context, ask func(context.Context) (T, error), look func(T) (ended bool, err error)) error {
	answered := time.Now()
	for {
		seen, err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			answered = time.Now()
			if ended, err := look(seen); ended {
				return err
			}
		case time.Since(answered) >= patienceWith(err):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchInterval):
		}
	}
}

// patienceWith is how long an error may be the only answer.
func patienceWith(err error) time.Duration {
	var e *apiError
	switch {
	case errors.As(err, &e) && e.Status < 500:
		return 0 // waiting does not change it
	case errors.Is(err, errNotStaged):
		return stagingUnheard
	default:
		return watchPatience
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

// fleetSight is a fleet update and the hosts, by id.
type fleetSight struct {
	update apiFleetUpdate
	hosts  map[string]apiHost
}

func watchOnce(ctx context.Context, c *client, id string) (seen fleetSight, err error) {
	if err := c.call(ctx, http.MethodGet, "/api/fleet-updates/"+id, nil, &seen.update); err != nil {
		return seen, err
	}
	list, err := c.hosts(ctx, "")
	seen.hosts = map[string]apiHost{}
	for _, h := range list {
		seen.hosts[h.ID] = h
	}
	return seen, err
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
