package fleet

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// decided returns the state without what a refused entry may change: the index
// and the proposals that are remembered.
func decided(s *State) string {
	var snap bytes.Buffer
	must(s.Snapshot(&snap))
	lines := strings.Split(snap.String(), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, `{"t":"meta"`) || strings.HasPrefix(l, `{"t":"proposals"`) || strings.HasPrefix(l, `{"rows"`)
	})
	return strings.Join(lines, "\n")
}

// anyChange draws a change about a small world, so that most sequences are
// legal now and then.
func anyChange(r *rapid.T, v View) Change {
	pick := func(what string, of ...string) string { return rapid.SampledFrom(of).Draw(r, what) }
	alert := "none"
	if open := v.OpenAlerts(); len(open) > 0 {
		alert = open[0].ID
	}
	ring, _ := v.GossipRing("default")
	var (
		revision = ring.Revision
		hostID   = pick("host", "h1", "h2", "h3", "h4", "s1")
		job      = pick("job", "j1", "j2", "j3", "j4", "j5", "j6")
		fleet    = pick("fleet", "f1", "f2", "f3")
		version  = pick("version", "B", "B", "C")
		user     = pick("user", "u1", "u2")
		token    = pick("token", "tok1", "tok4", "tok5")
		network  = pick("network", "10.0.0.1", "10.0.0.2", "2001:db8::/64")
	)
	// What the state waits for is drawn as often as all the rest: a history of
	// blind draws hardly ever has two jobs that could run at once.
	if next := awaited(v); len(next) > 0 && rapid.Bool().Draw(r, "awaited") {
		return rapid.SampledFrom(next).Draw(r, "next")
	}
	cluster, _ := v.Cluster()
	return rapid.SampledFrom([]Change{
		joinToken(token),
		HostEnrolled{TokenHash: token, Host: host(rapid.IntRange(1, 5).Draw(r, "n"))},
		HostRemoved{HostID: hostID},
		HostAddressesChanged{HostID: hostID, PeerAddr: "10.0.0.1:7947"},
		ServerTLSChanged{HostID: hostID, TLS: rapid.Bool().Draw(r, "tls")},
		HostSegmentsChanged{HostID: hostID, Also: []HostSegment{{Segment: pick("segment", "dmz", "plant"), GossipAddr: "10.2.0.1:7946"}}},
		HostLabelsSet{HostID: hostID, Labels: map[string]string{"rack": rapid.SampledFrom([]string{"", "a", "b"}).Draw(r, "rack")}},
		HostLabelsSet{HostID: hostID, Labels: map[string]string{}, Was: map[string]string{"rack": "a"}},
		release(version, rapid.Uint64Range(1, 4).Draw(r, "number")),
		ReleaseWithdrawn{Version: version},
		ReleaseStaged{Version: version},
		ReleaseStaged{Version: version, FleetUpdateID: fleet},
		keysChanged(rapid.Uint64Range(1, 4).Draw(r, "statement")),
		JobCreated{JobID: job, HostID: hostID, TargetVersion: version},
		JobDispatched{JobID: job, HostID: hostID},
		JobDispatched{JobID: job, HostID: hostID, FleetUpdateID: fleet},
		JobDispatched{JobID: job, HostID: hostID, FleetUpdateID: fleet, FromVersion: "A", Boot: 3},
		JobFinished{JobID: job, Status: JobSucceeded},
		JobFinished{JobID: job, Status: JobFailed, Error: strings.Repeat("€", rapid.IntRange(0, MaxReasonBytes/2).Draw(r, "error"))},
		JobFinished{JobID: job, Status: JobCancelled},
		JobLogAppended{JobID: job, First: rapid.Uint64Range(0, 3).Draw(r, "first"), Lines: []LogLine{{Line: "x"}, {Line: strings.Repeat("€", MaxLogLineBytes)}}},
		FleetUpdateStarted{ID: fleet, TargetVersion: version, HostIDs: []string{"h1", "h2", "h3"}},
		FleetUpdateStarted{ID: fleet, TargetVersion: version, HostIDs: []string{hostID}},
		FleetUpdateWithServersStarted{ID: fleet, TargetVersion: version, HostIDs: []string{"h1", "s1"}},
		FleetUpdateHostSkipped{ID: fleet, HostID: hostID, Reason: "already at target"},
		FleetUpdateHalted{ID: fleet, HostID: hostID, Reason: "host went offline"},
		FleetUpdateCompleted{ID: fleet},
		FleetUpdatePaused{ID: fleet},
		FleetUpdateResumed{ID: fleet},
		FleetUpdateCancelled{ID: fleet},
		AlertResolved{AlertID: alert},
		AlertAcknowledged{AlertID: alert},
		UserCreated{User: User{ID: user, Name: "user-" + user, Role: Viewer, PasswordHash: "x"}},
		UserChanged{UserID: user, Role: rapid.SampledFrom([]UserRole{Admin, Operator, Viewer}).Draw(r, "role")},
		UserDeleted{UserID: user},
		APITokenCreated{Token: APIToken{ID: token, Name: token, Role: Viewer, Hash: "hash-" + token}},
		APITokenRevoked{TokenID: token},
		UserChanged{UserID: user, PasswordHash: "y", MustChange: rapid.Bool().Draw(r, "must change")},
		SessionCreated{Session: Session{Hash: token, UserID: user, ExpiresAt: epoch.AddDate(1, 0, 0)}, Network: network},
		SessionEnded{Hash: token},
		webhook(pick("webhook", "w1", "w2")),
		WebhookChanged{WebhookID: pick("changed", "w1", "w2"), Enabled: ptr(rapid.Bool().Draw(r, "enabled")), Kinds: &[]string{AlertUpdateFailed}},
		WebhookDeleted{WebhookID: pick("deleted", "w1", "w2", "w2")},
		WebhookTested{WebhookID: "w1"},
		WebhookRefreshed{WebhookID: "w1", Status: 500, Error: "it answered 500"},
		SessionsEnded{UserID: user},
		LoginsTried{Tries: slices.Repeat([]LoginTry{{ID: job, Name: "user-" + user, Network: network}}, rapid.IntRange(1, 12).Draw(r, "tries"))},
		epochBegun(rapid.Uint64Range(0, 3).Draw(r, "epoch"), pick("server", "s1", "s2")),
		BackupTaken{Releases: true, Recipient: "age1x"},
		HostDenied{HostID: hostID, Until: epoch.AddDate(1, 0, 0), GossipKeys: []SegmentKey{segmentKey("default", byte(v.Index())), segmentKey("dmz", byte(v.Index())), segmentKey("plant", byte(v.Index()))}},
		GossipRotationBegun{Keys: []SegmentKey{segmentKey("default", byte(v.Index()))}},
		GossipRotationAdvanced{Segment: "default", Revision: revision},
		HostQuarantined{HostID: hostID, Why: "two machines"},
		HostQuarantineLifted{HostID: hostID},
		caBegun(cluster.CANumber + 1),
		CASwitched{Number: cluster.CANumber + 1, EpochStatement: cluster.EpochStatement},
		caRetired(cluster.CANumber),
		AlertRaised{AlertKind: AlertHostSilent, HostID: hostID, Message: "silent"},
		ServerStandbyChanged{HostID: hostID, Standby: rapid.Bool().Draw(r, "standby")},
	}).Draw(r, "change")
}

// awaited returns changes that carry the state on: most of them are legal.
func awaited(v View) (next []Change) {
	fresh := fmt.Sprintf("n%d", v.Index())
	for _, h := range v.Hosts() {
		next = append(next, JobCreated{JobID: fresh, HostID: h.ID, TargetVersion: "B"})
	}
	for _, j := range v.OpenJobs() {
		next = append(next, JobDispatched{JobID: j.ID, HostID: j.HostID}, JobFinished{JobID: j.ID, Status: JobSucceeded}, JobFinished{JobID: j.ID, Status: JobFailed, Error: "no"})
	}
	for _, w := range v.Webhooks() {
		n, _ := v.NextNotification(w.ID)
		next = append(next, AlertNotifying{WebhookID: w.ID, Seq: n.Seq, Revision: w.Delivery.Revision},
			AlertNotified{WebhookID: w.ID, Sending: w.Delivery.Sending, Error: "no answer"},
			AlertNotified{WebhookID: w.ID, Sending: w.Delivery.Sending, Error: "no answer", GivenUp: true},
			AlertNotified{WebhookID: w.ID, Sending: w.Delivery.Sending, Status: 200},
			WebhookRefreshed{WebhookID: w.ID, Revision: w.Delivery.Revision, Status: 200})
	}
	for _, u := range v.FleetUpdates() { // those that are over too
		for _, turn := range u.Hosts.All() {
			next = append(next, JobDispatched{JobID: fresh, HostID: turn.HostID, FleetUpdateID: u.ID})
		}
		next = append(next, FleetUpdateCompleted{ID: u.ID})
	}
	return next
}

// history is what a test of the state machine remembers by itself, apart from
// the state: the invariants are checked against it.
type history struct {
	dispatched map[string]bool      // job, host, attempt
	indexes    map[uint64]bool      // fencing tokens
	failed     map[string]bool      // fleet updates with a recorded failure
	jobs       map[string]JobStatus // last seen
	updates    map[string]FleetUpdateStatus
}

var legalJob = map[JobStatus][]JobStatus{
	"":         {JobQueued, JobRunning},
	JobQueued:  {JobRunning, JobFailed, JobCancelled},
	JobRunning: {JobSucceeded, JobFailed},
}

var legalUpdate = map[FleetUpdateStatus][]FleetUpdateStatus{
	"":           {FleetRunning},
	FleetRunning: {FleetPaused, FleetCompleted, FleetHalted, FleetCancelled},
	FleetPaused:  {FleetRunning, FleetHalted, FleetCancelled},
}

// check looks at the state after the accepted change c.
func (h *history) check(r *rapid.T, v View, c Change) {
	if d, ok := c.(JobDispatched); ok {
		j, _ := v.Job(d.JobID)
		if h.failed[d.FleetUpdateID] {
			r.Fatalf("invariant 15: %s was dispatched after a failure of %s", d.JobID, d.FleetUpdateID)
		}
		run := fmt.Sprint(j.ID, j.HostID, j.Attempt)
		if h.dispatched[run] || h.indexes[j.DispatchIndex] || j.DispatchIndex != v.Index() {
			r.Fatalf("invariant 13: %s was dispatched before, or its fencing token %d is not new", run, j.DispatchIndex)
		}
		h.dispatched[run], h.indexes[j.DispatchIndex] = true, true
	}
	switch c := c.(type) {
	case JobFinished:
		if j, _ := v.Job(c.JobID); j.Status == JobFailed && j.FleetUpdateID != "" {
			h.failed[j.FleetUpdateID] = true
		}
	case FleetUpdateHalted:
		h.failed[c.ID] = true
	}
	running := 0
	open := map[string]bool{} // by host
	for _, row := range all[jobRow](v.txn, false, tableJobs, "index") {
		j, id := row.Job, row.ID
		if !j.Status.Done() && open[j.HostID] {
			r.Fatalf("host %s has two jobs that are not done", j.HostID)
		}
		open[j.HostID] = open[j.HostID] || !j.Status.Done()
		if was := h.jobs[id]; was != j.Status && !slices.Contains(legalJob[was], j.Status) {
			r.Fatalf("job %s went from %q to %q", id, was, j.Status)
		}
		h.jobs[id] = j.Status
		if j.Status == JobRunning {
			running++
		}
		if j.Status.Done() != (j.FinishedAt != nil) || (j.Status == JobRunning) && j.StartedAt == nil {
			r.Fatalf("times of job: %+v", j)
		}
	}
	if running > MaxInFlight {
		r.Fatalf("invariant 14: %d hosts in flight", running)
	}
	active := 0
	for _, u := range v.FleetUpdates() {
		if was := h.updates[u.ID]; was != u.Status && !slices.Contains(legalUpdate[was], u.Status) {
			r.Fatalf("fleet update %s went from %q to %q", u.ID, was, u.Status)
		}
		h.updates[u.ID] = u.Status
		if u.Status.Active() {
			active++
			if h.failed[u.ID] {
				r.Fatalf("invariant 15: %s is %s after a failure", u.ID, u.Status)
			}
		}
		for _, turn := range u.Hosts.All() {
			j, ok := v.Job(turn.JobID)
			if turn.Status == TurnRunning && (!ok || j.Status != JobRunning) || turn.Status == TurnSucceeded && j.Status != JobSucceeded {
				r.Fatalf("turn %+v with job %+v", turn, j)
			}
		}
	}
	if active > 1 {
		r.Fatalf("%d fleet updates are active", active)
	}
}

// mayBeSilent tells whether an accepted change may leave no audit entry.
func mayBeSilent(before View, c Change) bool {
	switch c := c.(type) {
	case HostQuarantined:
		h, _ := before.Host(c.HostID)
		return h.Quarantine != nil
	case AlertRaised:
		return slices.ContainsFunc(before.OpenAlerts(), func(a Alert) bool { return a.Kind == c.AlertKind && a.HostID == c.HostID })
	case JobLogAppended, AlertNotifying, WebhookRefreshed, LoginsTried:
		return true
	case AlertNotified:
		return !c.GivenUp
	case HostEnrolled: // repeated by a host that did not hear the answer
		k, _ := before.JoinTokenByHash(c.TokenHash)
		return k.UsedAt != nil
	case HostAddressesChanged: // where it was already
		h, _ := before.Host(c.HostID)
		return h.GossipAddr == c.GossipAddr && h.PeerAddr == c.PeerAddr && h.HTTPAddr == c.HTTPAddr
	case ServerTLSChanged: // so already
		h, _ := before.Host(c.HostID)
		return h.HTTPTLS == c.TLS
	case HostSegmentsChanged: // in the same ones already
		h, _ := before.Host(c.HostID)
		return slices.Equal(h.Also, c.Also)
	case HostLabelsSet: // that it has already
		h, _ := before.Host(c.HostID)
		return maps.Equal(h.Labels, c.Labels)
	case SessionEnded: // ended already
		_, ok := before.Session(c.Hash)
		return !ok
	case ServerStandbyChanged: // so already
		h, _ := before.Host(c.HostID)
		return h.Standby == c.Standby
	}
	return false
}

// Invariants 11 to 15 and 20 over random histories with retries.
func TestInvariantsOverRandomHistories(t *testing.T) {
	const steps = 80
	rapid.Check(t, func(r *rapid.T) {
		s := fleetOf(t, 3)
		h := &history{map[string]bool{}, map[uint64]bool{}, map[string]bool{}, map[string]JobStatus{}, map[string]FleetUpdateStatus{}}
		cut := rapid.IntRange(0, steps-1).Draw(r, "cut")
		var restored *State
		for i := range steps {
			if i == cut {
				restored = reopened(r, s.state)
			}
			before, was := s.state.View(), decided(s.state)
			if rapid.IntRange(0, 9).Draw(r, "retry") == 0 {
				old := s.log[rapid.IntRange(0, len(s.log)-1).Draw(r, "old")]
				s.log = append(s.log, old)
				s.state.Apply(uint64(len(s.log)), old)
				if decided(s.state) != was {
					r.Fatalf("invariant 13: the retry of a %s changed the state", old.Type)
				}
			} else {
				c := anyChange(r, before)
				err := s.apply(c)
				after := s.state.View()
				switch {
				case err != nil:
					if err.Code == "" || err.Message == "" || len(err.Message) > MaxMessageBytes {
						r.Fatalf("refusal: %+v", err)
					}
					if decided(s.state) != was {
						r.Fatalf("the refused %s changed the state", c.Kind())
					}
				default:
					h.check(r, after, c)
					newest := after.Audit(0, 1)[0]
					audited := newest.Index == after.Index()
					if audited && (newest.Actor != "user:ann" || newest.Action != c.Kind() || newest.Subject == "" || newest.Subject == c.Kind()) {
						r.Fatalf("invariant 20: audit %+v", newest)
					}
					if !audited && !mayBeSilent(before, c) {
						r.Fatalf("invariant 20: %s left no audit entry", c.Kind())
					}
				}
			}
			if restored != nil {
				restored.Apply(uint64(len(s.log)), s.log[len(s.log)-1])
			}
		}
		replayed := New()
		for i, e := range s.log {
			replayed.Apply(uint64(i+1), reread(r, e))
		}
		if replayed.Hash() != s.state.Hash() {
			r.Fatalf("invariant 11: the same entries give another state")
		}
		if restored.Hash() != s.state.Hash() {
			r.Fatalf("invariant 12: snapshot at %d and the rest of the log give another state", cut)
		}
		if row := differs(restored, replayed); row != "" {
			r.Fatalf("invariant 12: snapshot at %d and the rest of the log against all of the log: %s", cut, row)
		}
	})
}
