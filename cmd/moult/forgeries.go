package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh"
)

// When a server raises an alert over gossip that nobody of the cluster signed. A
// host that is just joining is refused a few times; a forger does not stop at that.
const (
	forgeryTick   = 30 * time.Second
	forgeryTicks  = 10 // of which the sum counts: 5 min
	forgeryAlarm  = 50 // records and messages in that time
	forgeryQuiet  = time.Hour
	forgeryCalm   = time.Hour // without so many, at all servers, until the alert closes by itself
	forgeryReason = "somebody who has the segment's gossip key speaks for others, or a host runs with another one's data directory; change the key with: moult gossip rotate"
)

// forgeryWatch counts what the mesh of this server refused. Its methods are safe for
// concurrent use.
type forgeryWatch struct {
	mu     sync.Mutex
	last   uint64
	recent []uint64  // by tick, the newest last
	told   time.Time // when it last raised the alert
	loud   time.Time // when there was too much of it last, or when this server started
}

func newForgeryWatch() *forgeryWatch { return &forgeryWatch{loud: time.Now()} }

// calm is for how long there was not too much of it.
func (w *forgeryWatch) calm(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(now.Sub(w.loud), 0)
}

// untold has the alert raised at the next tick: it could not be raised.
func (w *forgeryWatch) untold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = time.Time{}
}

// look takes the counters of a tick, and returns what to tell when there is too
// much of it.
func (w *forgeryWatch) look(server string, c mesh.Counters, now time.Time) (message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	total := c.UnverifiedRecords + c.MalformedRecords + c.UnverifiedMessages
	w.recent = append(w.recent, total-w.last)
	w.last = total
	w.recent = w.recent[max(0, len(w.recent)-forgeryTicks):]
	var sum uint64
	for _, n := range w.recent {
		sum += n
	}
	if sum < forgeryAlarm {
		return ""
	}
	w.loud = now
	if !w.told.IsZero() && now.Sub(w.told) < forgeryQuiet {
		return ""
	}
	w.told = now
	message = fmt.Sprintf("%s refused %d records and messages in %s whose signature is wrong", server, sum, time.Duration(len(w.recent))*forgeryTick)
	if c.LastForged != "" {
		message += ", the last record for " + c.LastForged
	}
	return message + ": " + forgeryReason
}

// run looks until ctx ends.
func (w *forgeryWatch) run(ctx context.Context, server string, node *mesh.Node, propose func(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error), logger *slog.Logger) {
	for nodekit.Sleep(ctx, forgeryTick) {
		message := w.look(server, node.Counters(), time.Now())
		if message == "" {
			continue
		}
		logger.Warn("gossip is forged", "told", message)
		if _, err := propose(ctx, "system", fleet.AlertRaised{AlertKind: fleet.AlertForgedRecords, Message: message}); err != nil && ctx.Err() == nil {
			logger.Warn("raise an alert", "error", err)
			w.untold()
		}
	}
}

// lead closes the alert while this server leads.
func (w *forgeryWatch) lead(ctx context.Context, m *membership, logger *slog.Logger) {
	for nodekit.Sleep(ctx, forgeryTick) {
		w.close(ctx, m, logger, time.Now())
	}
}

// close closes the alert when every server says that it has been calm for long
// enough. One that does not answer may see what the others do not.
func (w *forgeryWatch) close(ctx context.Context, m *membership, logger *slog.Logger, now time.Time) {
	alerts := m.raft.State().View().OpenAlerts()
	at := slices.IndexFunc(alerts, func(a fleet.Alert) bool { return a.Kind == fleet.AlertForgedRecords })
	if at < 0 || w.calm(now) < forgeryCalm || !m.othersCalm(ctx) {
		return
	}
	if _, err := m.raft.Propose(ctx, "coordinator", fleet.AlertResolved{AlertID: alerts[at].ID}); err != nil && ctx.Err() == nil {
		logger.Warn("close an alert", "error", err)
	}
}

// othersCalm asks all other servers.
func (m *membership) othersCalm(ctx context.Context) bool {
	for _, s := range m.raft.Servers() {
		if s.ID == m.self {
			continue
		}
		if st, err := m.servers.Status(ctx, s.Address); err != nil || st.ForgeryCalm < forgeryCalm {
			return false
		}
	}
	return true
}
