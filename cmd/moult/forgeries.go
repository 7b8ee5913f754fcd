package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

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
	forgeryReason = "somebody who has the segment's gossip key speaks for others, or a host runs with another one's data directory; change the key with: moult gossip rotate"
)

// forgeryWatch counts what the mesh of this server refused.
type forgeryWatch struct {
	last   uint64
	recent []uint64  // by tick, the newest last
	told   time.Time // when it last raised the alert
}

// look takes the counters of a tick, and returns what to tell when there is too
// much of it.
func (w *forgeryWatch) look(server string, c mesh.Counters, now time.Time) (message string) {
	total := c.UnverifiedRecords + c.MalformedRecords + c.UnverifiedMessages
	w.recent = append(w.recent, total-w.last)
	w.last = total
	w.recent = w.recent[max(0, len(w.recent)-forgeryTicks):]
	var sum uint64
	for _, n := range w.recent {
		sum += n
	}
	if sum < forgeryAlarm || !w.told.IsZero() && now.Sub(w.told) < forgeryQuiet {
		return ""
	}
	w.told = now
	message = fmt.Sprintf("%s refused %d records and messages in %s whose signature is wrong", server, sum, time.Duration(len(w.recent))*forgeryTick)
	if c.LastForged != "" {
		message += ", the last record for " + c.LastForged
	}
	return message + ": " + forgeryReason
}

// watchForgeries looks until ctx ends.
func watchForgeries(ctx context.Context, server string, node *mesh.Node, propose func(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error), logger *slog.Logger) {
	w := &forgeryWatch{}
	for sleep(ctx, forgeryTick) {
		message := w.look(server, node.Counters(), time.Now())
		if message == "" {
			continue
		}
		logger.Warn("gossip is forged", "told", message)
		if _, err := propose(ctx, "system", fleet.AlertRaised{AlertKind: fleet.AlertForgedRecords, Message: message}); err != nil && ctx.Err() == nil {
			logger.Warn("raise an alert", "error", err)
			w.told = time.Time{} // once more
		}
	}
}
