// Package notifier tells webhooks of alerts, while this server leads.
//
// Command moult calls Run from consensus.Node.Lead, beside the coordinator, so one
// notifier runs in a cluster. What each webhook is to be told stands in the
// replicated state (fleet.Notification). The package has three parts:
//
//   - next (plan.go) says what to do for one webhook. It is a pure function of the
//     state, of what this leader remembers, and of the time.
//   - Run (run.go) does it, with a goroutine for each webhook: a receiver that
//     hangs delays no other, and nothing else on this server.
//   - Client (client.go) is the HTTP side, and message.go writes the bodies.
//
// Promises. The notifications of a webhook are sent one at a time, in the order
// in which alerts changed, each again until the receiver takes it (a 2xx status)
// or it is given up. An attempt is made only after its intent was committed, so a
// server that lost its majority sends none. One that was taken is not sent again,
// whoever leads next, unless the leader is lost between the answer and the commit
// that records it; the repetition then carries the same webhook-id. An
// Alertmanager is also sent what is open at each RefreshInterval.
//
// Secrets (the URL's path and query, the bearer token, the signing secret) are in
// no log line and no error.
package notifier

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"moult/consensus/fleet"
)

// Actor is who the notifier's changes are by.
const Actor = "notifier"

// How notifications are delivered.
const (
	// AttemptTimeout bounds one attempt, from the look-up of the name to the answer.
	AttemptTimeout = 10 * time.Second
	// FirstRetry is the pause after the first failure; it doubles with each up to
	// MaxRetry. Jitter of a fifth up or down is added.
	FirstRetry = 5 * time.Second
	MaxRetry   = 10 * time.Minute
	// GiveUpAfter is how long after an alert's change of state it is tried.
	GiveUpAfter = 24 * time.Hour
	// MaxRefusals is how many attempts a notification has whose very content the
	// receiver refuses (400, 413, 422). Others wait behind it.
	MaxRefusals = 5

	// RefreshInterval is how often an Alertmanager is told again what is open:
	// it forgets alerts that nobody repeats.
	RefreshInterval = time.Minute
	// Expiry is how long after a repetition an Alertmanager keeps an alert. It
	// outlasts the loss of a leader, and of some repetitions.
	Expiry = 10 * time.Minute
	// RepeatResolved is how long closed alerts are repeated to an Alertmanager, so
	// that it hears of the end even if it was away, or its clock is behind.
	RepeatResolved = 15 * time.Minute
	// MaxBatch is how many alerts one request to an Alertmanager has.
	MaxBatch = 64

	// maxAnswer is how many bytes of an answer are read; none is kept.
	maxAnswer = 64 << 10
	// maxText is how many bytes of an alert's message Slack and Alertmanager get.
	maxText = 2 << 10
	// proposeTimeout bounds the wait for one commit.
	proposeTimeout = 10 * time.Second
	// refusedPause is the pause after a change that was not accepted.
	refusedPause = time.Second
)

// Log is the replicated log and the state that it makes.
type Log interface {
	// Propose returns once the change is applied here, or refused (*fleet.Error).
	// After any other error it may or may not be applied later.
	Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error)
	State() *fleet.State
}

// Sender makes one request to a webhook's receiver. It returns within
// AttemptTimeout, or when ctx ends.
type Sender interface {
	Send(ctx context.Context, w fleet.Webhook, r Request) Outcome
}

// Outcome is how an attempt ended.
type Outcome struct {
	Status     int           // HTTP; 0: there was no answer
	Err        error         // nil: the receiver took it; its text holds no secret
	RetryAfter time.Duration // what the receiver asks for; 0: nothing
}

// Config is what Run needs. A nil Logger logs nothing.
type Config struct {
	Log    Log
	Sender Sender
	Logger *slog.Logger
}

func (c *Config) validate() error {
	if c.Log == nil || c.Sender == nil {
		return errors.New("notifier: Log and Sender must be given")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}
