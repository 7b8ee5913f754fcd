package notifier

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"moult/consensus/fleet"
)

// Run notifies until ctx ends, and returns its error, or an error at once when cfg
// is not valid. Call it only while this server leads and its state is up to date,
// with a context that ends with the leadership. All goroutines that it starts have
// ended when it returns; an attempt under way is broken off.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	n := &notifier{Config: cfg, serving: map[string]bool{}, changed: make(chan struct{})}
	defer n.workers.Wait()
	events, stop := cfg.Log.State().Subscribe()
	defer stop()
	for ctx.Err() == nil {
		n.employ(ctx)
		select {
		case <-ctx.Done():
		case e := <-events:
			if concerns(e) {
				n.wake()
			}
		}
	}
	return ctx.Err()
}

// concerns tells whether an event may change what is to be done.
func concerns(e fleet.Event) bool {
	return slices.ContainsFunc(e.Topics, func(topic string) bool { return topic == "webhooks" || topic == "alerts" || topic == "*" })
}

// notifier is one Run.
type notifier struct {
	Config
	workers sync.WaitGroup

	mu      sync.Mutex
	serving map[string]bool // webhooks that have a goroutine
	changed chan struct{}   // closed at the next change
}

// employ starts a goroutine for each webhook that has none.
func (n *notifier) employ(ctx context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.Log.State().View().Webhooks() {
		if n.serving[w.ID] {
			continue
		}
		n.serving[w.ID] = true
		n.workers.Go(func() {
			n.serve(ctx, w.ID)
			n.mu.Lock()
			defer n.mu.Unlock()
			delete(n.serving, w.ID)
		})
	}
}

func (n *notifier) wake() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *notifier) changes() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// serve looks after one webhook until it is deleted or ctx ends.
func (n *notifier) serve(ctx context.Context, id string) {
	var mem memory
	for ctx.Err() == nil {
		changed := n.changes() // before looking, so that nothing is missed
		v := n.Log.State().View()
		w, exists := v.Webhook(id)
		if !exists {
			return
		}
		in := input{Now: time.Now(), Webhook: w, Memory: mem}
		if waiting, ok := v.NextNotification(id); ok {
			in.Next = &waiting
		}
		if w.Format == fleet.WebhookAlertmanager {
			in.Alerts = v.Alerts()
		}
		var do action
		do, mem = next(in)
		switch {
		case do.Deliver:
			mem.RetryAt = n.deliver(ctx, w, *in.Next)
		case len(do.Refresh) > 0:
			n.refresh(ctx, v, w, do.Refresh)
		default:
			wait(ctx, do.Wake, changed)
		}
	}
}

// wait returns when something has changed or wake has come.
func wait(ctx context.Context, wake time.Time, changed <-chan struct{}) {
	var alarm <-chan time.Time
	if !wake.IsZero() {
		t := time.NewTimer(time.Until(wake))
		defer t.Stop()
		alarm = t.C
	}
	select {
	case <-ctx.Done():
	case <-alarm:
	case <-changed:
	}
}

// deliver makes one attempt: it commits the intent, sends, and commits how that
// ended. It returns when to try again at the earliest.
func (n *notifier) deliver(ctx context.Context, w fleet.Webhook, waiting fleet.Notification) time.Time {
	intent, err := n.propose(ctx, fleet.AlertNotifying{WebhookID: w.ID, Seq: waiting.Seq, Revision: w.Delivery.Revision})
	if err != nil {
		return time.Now().Add(refusedPause)
	}
	v := n.Log.State().View()
	b, err := body(w.Format, messageOf(v, waiting), time.Now())
	if err != nil {
		n.Logger.Error("write a notification", "webhook", w.Name, "error", err)
		return time.Now().Add(MaxRetry)
	}
	c, _ := v.Cluster()
	out := n.Sender.Send(ctx, w, Request{ID: messageID(c.ID, waiting.AlertID, waiting.Event), Body: b})
	if ctx.Err() != nil {
		return time.Time{} // whether it arrived is not known; who leads next tries again
	}
	now, attempts := time.Now(), attemptsOf(v, w.ID)
	end := fleet.AlertNotified{WebhookID: w.ID, Sending: intent.Index, Status: out.Status}
	var retry time.Time
	if out.Err != nil {
		end.Error = out.Err.Error()
		end.GivenUp = giveUp(out.Status, attempts, now.Sub(waiting.At))
		if !end.GivenUp {
			retry = now.Add(retryAfter(attempts, out.RetryAfter, rand.Float64()))
		}
	}
	n.tell(w, waiting, end, attempts, retry)
	if !n.record(ctx, end) {
		return time.Time{} // the notification is gone meanwhile
	}
	return retry
}

func attemptsOf(v fleet.View, id string) int {
	w, _ := v.Webhook(id)
	return w.Delivery.Attempts
}

// tell logs how an attempt ended.
func (n *notifier) tell(w fleet.Webhook, waiting fleet.Notification, end fleet.AlertNotified, attempts int, retry time.Time) {
	log := n.Logger.With("webhook", w.Name, "alert", waiting.AlertID, "event", string(waiting.Event), "attempt", attempts)
	switch {
	case end.Error == "":
		log.Info("notified")
	case end.GivenUp:
		log.Error("notification given up", "error", end.Error)
	default:
		log.Warn("notification not delivered", "error", end.Error, "again_in", time.Until(retry).Round(time.Second))
	}
}

// record commits how an attempt ended, for as long as this server leads: what was
// taken must not be sent again. It tells whether it was accepted.
func (n *notifier) record(ctx context.Context, end fleet.AlertNotified) bool {
	for ctx.Err() == nil {
		_, err := n.propose(ctx, end)
		var refused *fleet.Error
		switch {
		case err == nil:
			return true
		case errors.As(err, &refused):
			return false
		}
		wait(ctx, time.Now().Add(refusedPause), nil)
	}
	return false
}

// refresh repeats alerts to an Alertmanager. What comes of it is committed only
// where it is another thing than the last time: a log entry a minute would tell
// nothing.
func (n *notifier) refresh(ctx context.Context, v fleet.View, w fleet.Webhook, alerts []fleet.Alert) {
	requests, err := refreshes(v, alerts, time.Now())
	if err != nil {
		n.Logger.Error("write alerts", "webhook", w.Name, "error", err)
		return
	}
	var out Outcome
	for _, r := range requests {
		if out = n.Sender.Send(ctx, w, r); out.Err != nil {
			break
		}
	}
	failed, failing := out.Err != nil, w.Delivery.FailingSince != nil
	if ctx.Err() != nil || failed == failing {
		return
	}
	report := fleet.WebhookRefreshed{WebhookID: w.ID, Revision: w.Delivery.Revision, Status: out.Status}
	if failed {
		report.Error = out.Err.Error()
		n.Logger.Warn("open alerts not repeated", "webhook", w.Name, "error", report.Error)
	}
	_, _ = n.propose(ctx, report) // logged; the next refresh says it again
}

// propose commits a change. What was not accepted is logged.
func (n *notifier) propose(ctx context.Context, c fleet.Change) (fleet.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	result, err := n.Log.Propose(ctx, Actor, c)
	var refused *fleet.Error
	switch {
	case errors.As(err, &refused):
		n.Logger.Info("change refused", "change", c.Kind(), "code", refused.Code, "reason", refused.Message)
	case err != nil && !errors.Is(ctx.Err(), context.Canceled):
		n.Logger.Warn("change not committed", "change", c.Kind(), "error", err)
	}
	return result, err
}
