package notifier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"moult/consensus/fleet"
)

func TestEachChangeIsSentOnceAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("w1", fleet.WebhookJSON)
		first := s.alert("j1") // before anybody leads
		stop := s.lead()
		synctest.Wait()
		second := s.alert("j2")
		s.must(fleet.AlertAcknowledged{AlertID: first}, fleet.AlertResolved{AlertID: second})
		synctest.Wait()
		s.webhook("w2", fleet.WebhookSlack) // while it runs
		third := s.alert("j3")
		synctest.Wait()
		stop()
		s.lead()() // the next leader has nothing to send
		var got []string
		for _, r := range s.to("w1") {
			got = append(got, r.ID)
		}
		want := []string{"c1-" + first + "-opened", "c1-" + second + "-opened", "c1-" + first + "-acknowledged", "c1-" + second + "-resolved", "c1-" + third + "-opened"}
		if !slices.Equal(got, want) {
			t.Errorf("sent %q, want %q", got, want)
		}
		if got := s.to("w2"); len(got) != 1 {
			t.Errorf("the webhook of later was sent %d", len(got))
		}
		if d := s.delivery("w1"); d.Delivered != 5 || d.FailingSince != nil {
			t.Errorf("%+v", d)
		}
	})
}

// A receiver that hangs holds up neither another nor the end of the term.
func TestHangingReceiverDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("dead", fleet.WebhookJSON)
		s.webhook("well", fleet.WebhookJSON)
		release := make(chan struct{})
		under := 0
		s.setAnswer(func(w fleet.Webhook, _ Request) Outcome {
			if w.ID == "dead" {
				if under++; under > 1 { // one goroutine at a time comes here, or the race detector tells
					t.Error("two requests to one receiver")
				}
				<-release
				under--
			}
			return Outcome{Status: 200}
		})
		stop := s.lead()
		s.alert("j1")
		s.alert("j2")
		synctest.Wait()
		if n := len(s.to("well")); n != 2 {
			t.Errorf("the well one was sent %d of 2", n)
		}
		if n := len(s.to("dead")); n != 1 {
			t.Errorf("the dead one was sent %d", n)
		}
		close(release)
		synctest.Wait()
		if n := len(s.to("dead")); n != 2 {
			t.Errorf("after it came back: %d", n)
		}
		stop()
	})
}

// A dead receiver is asked less and less often, and again at once where a new
// leader begins; after a day it is given up, and the next one's turn comes.
func TestDeadReceiverIsTriedLessAndLessAndThenGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("w1", fleet.WebhookJSON)
		s.setAnswer(func(fleet.Webhook, Request) Outcome { return Outcome{Err: errors.New("no answer within 10s")} })
		begun := time.Now()
		first := s.alert("j1")
		stop := s.lead()
		time.Sleep(time.Hour)
		synctest.Wait()
		attempts := s.to("w1")
		pause := FirstRetry
		for i := 1; i < len(attempts); i++ {
			between := attempts[i].at.Sub(attempts[i-1].at)
			if between < pause*79/100 || between > pause*121/100 {
				t.Errorf("between attempts %d and %d lie %s, not about %s", i, i+1, between, pause)
			}
			pause = min(2*pause, MaxRetry)
		}
		if len(attempts) < 10 || len(attempts) > 16 {
			t.Errorf("%d attempts in an hour", len(attempts))
		}
		if d := s.delivery("w1"); d.Attempts != len(attempts) || d.FailingSince == nil || !d.FailingSince.Equal(begun.UTC()) || d.LastError != "no answer within 10s" {
			t.Errorf("%+v", d)
		}
		stop()
		stop = s.lead()
		synctest.Wait()
		if again := s.to("w1"); len(again) != len(attempts)+1 || again[len(attempts)].ID != attempts[0].ID {
			t.Errorf("a new leader made %d attempts", len(again)-len(attempts))
		}
		time.Sleep(GiveUpAfter - 2*time.Hour)
		if d := s.delivery("w1"); d.GivenUp != 0 {
			t.Error("given up early")
		}
		second := s.alert("j2")
		time.Sleep(2*time.Hour + 2*MaxRetry)
		synctest.Wait()
		if d := s.delivery("w1"); d.GivenUp != 1 || d.Trying != 2 {
			t.Errorf("after a day: %+v", d)
		}
		s.setAnswer(func(fleet.Webhook, Request) Outcome { return Outcome{Status: 204} })
		time.Sleep(2 * MaxRetry)
		synctest.Wait()
		all := s.to("w1")
		if last := all[len(all)-1]; last.ID != "c1-"+second+"-opened" || s.delivery("w1").Delivered != 1 {
			t.Errorf("in the end: %s", last.ID)
		}
		if a := s.state.View().Audit(0, 1)[0]; !strings.Contains(a.Detail, "gave up after") || !strings.Contains(a.Detail, first) || a.Actor != Actor {
			t.Errorf("audit %+v", a)
		}
		stop()
	})
}

// What the receiver refuses for its content does not hold up the others for a day.
func TestRefusedContentIsGivenUpSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("w1", fleet.WebhookJSON)
		poison := s.alert("j1")
		s.alert("j2")
		s.setAnswer(func(_ fleet.Webhook, r Request) Outcome {
			if strings.Contains(r.ID, poison) {
				return Outcome{Status: 400, Err: errors.New("the receiver answered 400")}
			}
			return Outcome{Status: 200}
		})
		stop := s.lead()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if d := s.delivery("w1"); d.GivenUp != 1 || d.Delivered != 1 || len(s.to("w1")) != MaxRefusals+1 {
			t.Errorf("%d attempts, %+v", len(s.to("w1")), d)
		}
		stop()
	})
}

// A leader that cannot commit sends nothing: it may not be one any more.
func TestNothingIsSentWithoutItsIntent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("w1", fleet.WebhookJSON)
		s.alert("j1")
		s.setRefuse(func(fleet.Change) error { return errNoMajority })
		stop := s.lead()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(s.to("w1")); n != 0 {
			t.Errorf("%d were sent", n)
		}
		s.setRefuse(nil)
		time.Sleep(2 * refusedPause)
		synctest.Wait()
		if n := len(s.to("w1")); n != 1 {
			t.Errorf("%d were sent after it could commit again", n)
		}
		stop()
	})
}

// What was taken is recorded as soon as that is possible, and not sent again
// meanwhile. A leader that is lost before leaves the one window for a repetition.
func TestResultIsRecordedBeforeAnythingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("w1", fleet.WebhookJSON)
		s.alert("j1")
		notified := func(c fleet.Change) error {
			if _, is := c.(fleet.AlertNotified); is {
				return errNoMajority
			}
			return nil
		}
		s.setRefuse(notified)
		stop := s.lead()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(s.to("w1")); n != 1 {
			t.Fatalf("%d were sent while the result was not committed", n)
		}
		stop() // lost between send and commit
		s.setRefuse(nil)
		stop = s.lead()
		synctest.Wait()
		sent := s.to("w1")
		if len(sent) != 2 || sent[0].ID != sent[1].ID || string(sent[0].Body) != string(sent[1].Body) {
			t.Errorf("the next leader sent %d in all, with the ids of %v", len(sent), sent)
		}
		if d := s.delivery("w1"); d.Delivered != 1 {
			t.Errorf("%+v", d)
		}
		stop()
		want := []string{"alert_notifying", "alert_notifying", "alert_notified"}
		if got := s.kinds(); !slices.Equal(got, want) {
			t.Errorf("entries %v", got)
		}
	})
}

// A change of the settings is tried at once, whatever the pause; one that is
// deleted is let go.
func TestChangedSettingsAreTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("w1", fleet.WebhookJSON)
		s.webhook("w2", fleet.WebhookJSON)
		s.setAnswer(func(w fleet.Webhook, _ Request) Outcome {
			if strings.Contains(w.URL, "right") {
				return Outcome{Status: 200}
			}
			return Outcome{Status: 404, Err: errors.New("the receiver answered 404")}
		})
		stop := s.lead()
		s.alert("j1")
		time.Sleep(time.Hour)
		right := "https://hooks.example/right"
		changed := time.Now()
		s.must(fleet.WebhookChanged{WebhookID: "w1", URL: &right}, fleet.WebhookDeleted{WebhookID: "w2"})
		synctest.Wait()
		sent := s.to("w1")
		if last := sent[len(sent)-1]; !last.at.Equal(changed) || s.delivery("w1").Delivered != 1 {
			t.Errorf("tried at %s, changed at %s: %+v", last.at, changed, s.delivery("w1"))
		}
		n := len(s.to("w2"))
		time.Sleep(time.Hour)
		if got := len(s.to("w2")); got != n {
			t.Errorf("%d were sent to a webhook that is deleted", got-n)
		}
		stop()
	})
}

// An Alertmanager is told again each minute, of what is open and for a while of
// what was closed; the log does not grow by that.
func TestAlertmanagerIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("am", fleet.WebhookAlertmanager)
		stop := s.lead()
		id := s.alert("j1")
		synctest.Wait()
		entries := len(s.kinds())
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		sent := s.to("am")
		if len(sent) != 1+60 {
			t.Errorf("%d requests in an hour, want the first and 60", len(sent))
		}
		for i, r := range sent {
			alerts := mustPostable(t, r.Body)
			if len(alerts) != 1 || alerts[0].Labels["alert_id"] != id || alerts[0].EndsAt.Sub(r.at) != Expiry {
				t.Fatalf("request %d: %s", i, r.Body)
			}
			if i > 0 && r.at.Sub(sent[i-1].at) > RefreshInterval+time.Second {
				t.Errorf("a pause of %s before request %d", r.at.Sub(sent[i-1].at), i)
			}
		}
		if got := s.kinds()[entries:]; len(got) != 0 {
			t.Errorf("the log has %v for it", got)
		}
		s.must(fleet.AlertResolved{AlertID: id})
		ended := time.Now()
		time.Sleep(time.Hour)
		synctest.Wait()
		after := s.to("am")[len(sent):]
		if len(after) < 10 || len(after) > 17 {
			t.Errorf("%d requests after the end, of about %s", len(after), RepeatResolved)
		}
		for _, r := range after {
			if a := mustPostable(t, r.Body)[0]; !a.EndsAt.Equal(ended) || r.at.Sub(ended) > RepeatResolved {
				t.Errorf("at %s: %s", r.at, r.Body)
			}
		}
		stop()
	})
}

// That repetitions fail, or succeed again, is committed once each.
func TestFailingRepetitionsAreToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		s.webhook("am", fleet.WebhookAlertmanager)
		stop := s.lead()
		s.alert("j1")
		synctest.Wait()
		entries := len(s.kinds())
		s.setAnswer(func(fleet.Webhook, Request) Outcome {
			return Outcome{Status: 503, Err: errors.New("the receiver answered 503")}
		})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if d := s.delivery("am"); d.FailingSince == nil || d.LastStatus != 503 {
			t.Errorf("%+v", d)
		}
		s.setAnswer(func(fleet.Webhook, Request) Outcome { return Outcome{Status: 200} })
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if d := s.delivery("am"); d.FailingSince != nil {
			t.Errorf("%+v", d)
		}
		if got := s.kinds()[entries:]; !slices.Equal(got, []string{"webhook_refreshed", "webhook_refreshed"}) {
			t.Errorf("entries %v", got)
		}
		stop()
	})
}

// Large numbers of open alerts go in bounded requests.
func TestRepetitionsAreBatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startSite(t)
		for i := range 2*MaxBatch + 1 {
			s.alert(fmt.Sprint("j", i))
		}
		s.webhook("am", fleet.WebhookAlertmanager)
		stop := s.lead()
		time.Sleep(RefreshInterval + time.Second)
		synctest.Wait()
		var sizes []int
		for _, r := range s.to("am") {
			sizes = append(sizes, len(mustPostable(t, r.Body)))
		}
		if !slices.Equal(sizes, []int{MaxBatch, MaxBatch, 1}) {
			t.Errorf("requests of %v", sizes)
		}
		stop()
	})
}

func TestRunRefusesAConfigThatIsNotWhole(t *testing.T) {
	if err := Run(context.Background(), Config{}); err == nil {
		t.Error("it ran")
	}
}
