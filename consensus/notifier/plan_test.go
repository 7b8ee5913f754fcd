package notifier

import (
	"testing"
	"time"

	"moult/consensus/fleet"
)

func TestRetriesSlowDown(t *testing.T) {
	for _, c := range []struct {
		attempts int
		asked    time.Duration
		want     time.Duration
	}{
		{1, 0, 5 * time.Second},
		{2, 0, 10 * time.Second},
		{7, 0, 320 * time.Second},
		{8, 0, MaxRetry},
		{1000, 0, MaxRetry},
		{1, time.Minute, time.Minute},
		{3, time.Second, 20 * time.Second},
		{1, 24 * time.Hour, MaxRetry}, // a receiver can't silence us for long
	} {
		if got := retryAfter(c.attempts, c.asked, 0.5); got != c.want {
			t.Errorf("attempt %d, asked for %s: %s, want %s", c.attempts, c.asked, got, c.want)
		}
		if low, high := retryAfter(c.attempts, c.asked, 0), retryAfter(c.attempts, c.asked, 1); low != c.want*4/5 || high != c.want*6/5 {
			t.Errorf("attempt %d: from %s to %s", c.attempts, low, high)
		}
	}
}

func TestGivingUp(t *testing.T) {
	for _, c := range []struct {
		status, attempts int
		age              time.Duration
		want             bool
	}{
		{0, 1000, GiveUpAfter - 1, false},
		{0, 1, GiveUpAfter, true},
		{404, 100, time.Hour, false}, // somebody may mend the url
		{400, MaxRefusals - 1, time.Hour, false},
		{400, MaxRefusals, time.Minute, true},
		{413, MaxRefusals, time.Minute, true},
		{422, 1, GiveUpAfter, true},
		{500, MaxRefusals, time.Minute, false},
	} {
		if got := giveUp(c.status, c.attempts, c.age); got != c.want {
			t.Errorf("%+v", c)
		}
	}
}

func TestNext(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	hook := fleet.Webhook{ID: "w", Enabled: true, Format: fleet.WebhookAlertmanager, CreatedAt: now.Add(-10 * time.Minute), Delivery: fleet.Delivery{Revision: 7}}
	slack, off, narrow := hook, hook, hook
	slack.Format, off.Enabled, narrow.Kinds = fleet.WebhookSlack, false, []string{fleet.AlertFleetUpdateHalted}
	waiting := &fleet.Notification{Seq: 1}
	open := []fleet.Alert{{ID: "a", Kind: fleet.AlertUpdateFailed, Status: fleet.AlertStatusOpen}}
	closed := func(ago time.Duration) []fleet.Alert {
		return []fleet.Alert{{ID: "a", Kind: fleet.AlertUpdateFailed, Status: fleet.AlertStatusResolved, ResolvedAt: at(-ago)}}
	}
	pausing := memory{Revision: 7, RetryAt: now.Add(5 * time.Second), Refresh: now.Add(time.Minute)}
	due := memory{Revision: 7, Refresh: now}
	for name, c := range map[string]struct {
		in      input
		deliver bool
		refresh int
		wake    time.Duration // 0: none
	}{
		"nothing":                      {in: input{Webhook: slack}},
		"one waits":                    {in: input{Webhook: slack, Next: waiting}, deliver: true},
		"disabled":                     {in: input{Webhook: off, Next: waiting, Alerts: open, Memory: due}},
		"pause":                        {in: input{Webhook: slack, Next: waiting, Memory: pausing}, wake: 5 * time.Second},
		"pause is over":                {in: input{Webhook: slack, Next: waiting, Memory: memory{Revision: 7, RetryAt: now}}, deliver: true},
		"settings changed":             {in: input{Webhook: slack, Next: waiting, Memory: memory{Revision: 6, RetryAt: now.Add(time.Hour)}}, deliver: true},
		"open, a new leader":           {in: input{Webhook: hook, Alerts: open}, wake: RefreshInterval},
		"open, due":                    {in: input{Webhook: hook, Alerts: open, Memory: due}, refresh: 1},
		"open, of another kind":        {in: input{Webhook: narrow, Alerts: open, Memory: due}},
		"first what is new":            {in: input{Webhook: hook, Next: waiting, Alerts: open, Memory: due}, deliver: true},
		"repeats while it pauses":      {in: input{Webhook: hook, Next: waiting, Alerts: open, Memory: memory{Revision: 7, RetryAt: now.Add(time.Second), Refresh: now}}, refresh: 1, wake: time.Second},
		"wakes for the earlier":        {in: input{Webhook: hook, Next: waiting, Alerts: open, Memory: pausing}, wake: 5 * time.Second},
		"closed a moment ago":          {in: input{Webhook: hook, Alerts: closed(time.Minute), Memory: due}, refresh: 1},
		"closed before the webhook":    {in: input{Webhook: hook, Alerts: closed(11 * time.Minute), Memory: due}},
		"closed long ago":              {in: input{Webhook: hook, Alerts: closed(RepeatResolved + 1), Memory: due}},
		"slack is not told repeatedly": {in: input{Webhook: slack, Alerts: open, Memory: due}},
	} {
		c.in.Now = now
		do, mem := next(c.in)
		wake := time.Duration(0)
		if !do.Wake.IsZero() {
			wake = do.Wake.Sub(now)
		}
		if do.Deliver != c.deliver || len(do.Refresh) != c.refresh || wake != c.wake {
			t.Errorf("%s: %+v, wakes in %s", name, do, wake)
		}
		if mem.Revision != 7 || len(do.Refresh) > 0 && !mem.Refresh.Equal(now.Add(RefreshInterval)) {
			t.Errorf("%s: remembers %+v", name, mem)
		}
	}
}
