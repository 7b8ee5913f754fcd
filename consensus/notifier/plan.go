package notifier

import (
	"net/http"
	"slices"
	"time"

	"moult/consensus/fleet"
)

// input is all that next goes by.
type input struct {
	Now     time.Time
	Webhook fleet.Webhook
	Next    *fleet.Notification // that waits; nil: none
	Alerts  []fleet.Alert       // all, where the webhook is an Alertmanager
	Memory  memory
}

// memory is what this leader remembers of one webhook. A new leader begins
// without: it tries at once what waits, and repeats what is open a RefreshInterval
// later.
type memory struct {
	Revision uint64    // of the settings that the rest is about
	RetryAt  time.Time // not before this the next attempt; zero: at once
	Refresh  time.Time // when to repeat next
}

// action is what to do for a webhook.
type action struct {
	Deliver bool          // Next, after its intent
	Refresh []fleet.Alert // these are to be repeated
	Wake    time.Time     // when to look again at the latest; zero: when something changes
}

// next says what to do for a webhook now.
func next(in input) (action, memory) {
	mem := in.Memory
	if mem.Revision != in.Webhook.Delivery.Revision {
		mem = memory{Revision: in.Webhook.Delivery.Revision, Refresh: in.Now.Add(RefreshInterval)}
	}
	var do action
	if !in.Webhook.Enabled {
		return do, mem
	}
	if in.Next != nil {
		if !in.Now.Before(mem.RetryAt) {
			do.Deliver = true
			return do, mem
		}
		do.Wake = mem.RetryAt
	}
	if in.Webhook.Format != fleet.WebhookAlertmanager {
		return do, mem
	}
	repeat := toRepeat(in)
	switch {
	case len(repeat) == 0:
		mem.Refresh = in.Now.Add(RefreshInterval) // from when there is something to repeat
		return do, mem
	case !in.Now.Before(mem.Refresh):
		do.Refresh = repeat
		mem.Refresh = in.Now.Add(RefreshInterval)
		return do, mem
	}
	if do.Wake.IsZero() || mem.Refresh.Before(do.Wake) {
		do.Wake = mem.Refresh
	}
	return do, mem
}

// toRepeat returns what an Alertmanager is to be told again: what is open, and
// what was closed a short while ago. What was closed before the webhook was made
// is no business of its receiver's.
func toRepeat(in input) []fleet.Alert {
	return slices.DeleteFunc(slices.Clone(in.Alerts), func(a fleet.Alert) bool {
		if !in.Webhook.Wants(a.Kind) {
			return true
		}
		if a.Status == fleet.AlertStatusOpen {
			return false
		}
		return a.ResolvedAt == nil || in.Now.Sub(*a.ResolvedAt) > RepeatResolved || a.ResolvedAt.Before(in.Webhook.CreatedAt)
	})
}

// retryAfter is the pause after an attempt that failed, the attempts-th of its
// notification. jitter is from 0 to 1.
func retryAfter(attempts int, asked time.Duration, jitter float64) time.Duration {
	pause := FirstRetry
	for i := 1; i < attempts && pause < MaxRetry; i++ {
		pause *= 2
	}
	pause = min(max(pause, asked), MaxRetry)
	return pause + time.Duration((jitter-0.5)*0.4*float64(pause))
}

// giveUp tells whether a notification that failed again is not to be tried any
// more. age is that of the change of state it tells of.
func giveUp(status, attempts int, age time.Duration) bool {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return attempts >= MaxRefusals || age >= GiveUpAfter
	}
	return age >= GiveUpAfter
}
