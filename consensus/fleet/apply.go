package fleet

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"
)

// tx is one application of an entry.
type tx struct {
	*memdb.Txn
	bounds  bounds
	index   uint64
	at      time.Time
	actor   string
	from    string // for the audit
	topics  []string
	subject string // for the audit
	detail  string
	silent  bool // leave no audit entry
	added   sizes
}

func (t *tx) view() View              { return View{txn: t.Txn} }
func (t *tx) put(table string, r any) { must(t.Insert(table, r)) }
func (t *tx) remove(table string, r any) {
	must(t.Delete(table, r))
}
func (t *tx) touch(topics ...string) { t.topics = append(t.topics, topics...) }

// audit tells what the change was about. A change that does not say is audited
// all the same, by its kind: only unaudited keeps one out.
func (t *tx) audit(subject, detail string) { t.subject, t.detail = subject, detail }

// unaudited keeps the change out of the audit: a host's log line, which nobody
// decided, or a repetition that changes nothing.
func (t *tx) unaudited() { t.silent = true }

// refuse makes a coded refusal.
func refuse(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: clip(fmt.Sprintf(format, args...), MaxMessageBytes)}
}

// Apply applies one entry of the log. It never fails: an entry that is not
// legal is refused in the Result, and changes nothing but the index and what is
// remembered of the proposal. Indexes must rise from call to call.
func (s *State) Apply(index uint64, e Entry) Result {
	txn := s.db.Txn(true)
	defer func() { txn.Abort() }() // whichever is open; after Commit it does nothing
	named := validID(e.ID)
	if named {
		if p, ok := first[proposalRow](txn, tableProposals, "id", e.ID); ok {
			m := View{txn: txn}.meta()
			m.Index = index
			must(txn.Insert(tableMeta, m))
			txn.Commit()
			return p.Result
		}
	}
	t := &tx{Txn: txn, bounds: s.bounds, index: index, at: e.At.UTC(), actor: e.Actor, from: e.From}
	refused := t.apply(e)
	if refused != nil {
		// Start over: whatever the refused change did is gone.
		txn.Abort()
		txn = s.db.Txn(true)
		t = &tx{Txn: txn, bounds: s.bounds, index: index, silent: true}
	}
	result := Result{Index: index, Err: refused}
	t.record(e, named, result)
	txn.Commit()
	if len(t.topics) > 0 {
		s.subscribers.publish(Event{Index: index, Topics: t.topics})
	}
	return result
}

// Pass notes an entry of the log that is void, and why: it changes nothing but
// the index. Whether one is void must be equal on all servers.
func (s *State) Pass(index uint64, why string) Result {
	txn := s.db.Txn(true)
	m := View{txn: txn}.meta()
	m.Index = index
	must(txn.Insert(tableMeta, m))
	txn.Commit()
	return Result{Index: index, Err: refuse(CodeConflict, "%s", why)}
}

// record notes that the entry was applied: in the audit, among the proposals,
// and in the state's index. It drops what is now too much.
func (t *tx) record(e Entry, named bool, result Result) {
	m := t.view().meta()
	m.Index = t.index
	if result.Err != nil && result.Err.Code == CodeUnknownChange {
		m.Unknown++
	}
	if !t.silent {
		subject := t.subject
		if subject == "" {
			subject = e.Type
		}
		t.put(tableAudit, AuditEntry{Index: t.index, At: t.at, Actor: e.Actor, Action: e.Type, Subject: subject, Detail: clip(t.detail, MaxDetailBytes), From: t.from})
		t.touch("audit")
		t.added.audit++
	}
	if named {
		t.put(tableProposals, proposalRow{ID: e.ID, Index: t.index, Result: result})
		t.added.proposals++
	}
	m.size = t.prune(m.size.plus(t.added))
	t.put(tableMeta, m)
}

// apply runs the entry's change. An unknown kind is told first: a newer server's
// entry may break every other rule.
func (t *tx) apply(e Entry) *Error {
	f, known := appliers[e.Type]
	switch {
	case !known || e.Version != entryVersion:
		return refuse(CodeUnknownChange, "this server does not know %q version %d; update all servers before this is used", clip(e.Type, MaxNameBytes), e.Version)
	case e.Actor == "":
		return refuse(CodeBadRequest, "actor is empty; name who wants the change")
	case len(e.Actor) > MaxActorBytes:
		return refuse(CodeBadRequest, "actor is %d bytes; give at most %d", len(e.Actor), MaxActorBytes)
	case !validID(e.ID):
		return refuse(CodeBadRequest, "id %q of the proposal: %s", e.ID, nameRule)
	case len(e.From) > MaxFromBytes:
		return refuse(CodeBadRequest, "from is %d bytes; give an IP address of at most %d", len(e.From), MaxFromBytes)
	case !validTime(e.At):
		return refuse(CodeBadRequest, "at is after the year %d, or before the year 1; set the server's clock", maxYear)
	}
	return f(t, e.Body)
}

// on makes an applier out of a function of a decoded change.
func on[C Change, P interface {
	*C
	Change
}](f func(*tx, C) *Error,
) func(*tx, json.RawMessage) *Error {
	return func(t *tx, body json.RawMessage) *Error {
		var c C
		if refused := decodeBody(body, P(&c)); refused != nil {
			return refused
		}
		return f(t, c)
	}
}

// appliers maps each kind to what applies it. Append-only.
var appliers = map[string]func(*tx, json.RawMessage) *Error{
	ClusterInitialized{}.Kind():     on(applyClusterInitialized),
	JoinTokenCreated{}.Kind():       on(applyJoinTokenCreated),
	HostEnrolled{}.Kind():           on(applyHostEnrolled),
	HostRemoved{}.Kind():            on(applyHostRemoved),
	HostAddressesChanged{}.Kind():   on(applyHostAddressesChanged),
	HostSegmentsChanged{}.Kind():    on(applyHostSegmentsChanged),
	HostLabelsSet{}.Kind():          on(applyHostLabelsSet),
	ServerTLSChanged{}.Kind():       on(applyServerTLSChanged),
	ReleasePublished{}.Kind():       on(applyReleasePublished),
	ReleaseWithdrawn{}.Kind():       on(applyReleaseWithdrawn),
	ReleaseStaged{}.Kind():          on(applyReleaseStaged),
	ReleaseKeysChanged{}.Kind():     on(applyReleaseKeysChanged),
	JobCreated{}.Kind():             on(applyJobCreated),
	JobDispatched{}.Kind():          on(applyJobDispatched),
	JobFinished{}.Kind():            on(applyJobFinished),
	JobLogAppended{}.Kind():         on(applyJobLogAppended),
	FleetUpdateStarted{}.Kind():     on(applyFleetUpdateStarted),
	FleetUpdateHostSkipped{}.Kind(): on(applyFleetUpdateHostSkipped),
	FleetUpdateHalted{}.Kind():      on(applyFleetUpdateHalted),
	FleetUpdateCompleted{}.Kind():   on(applyFleetUpdateCompleted),
	FleetUpdatePaused{}.Kind():      on(applyFleetUpdatePaused),
	FleetUpdateResumed{}.Kind():     on(applyFleetUpdateResumed),
	FleetUpdateCancelled{}.Kind():   on(applyFleetUpdateCancelled),
	AlertResolved{}.Kind():          on(applyAlertResolved),
	AlertAcknowledged{}.Kind():      on(applyAlertAcknowledged),
	UserCreated{}.Kind():            on(applyUserCreated),
	UserChanged{}.Kind():            on(applyUserChanged),
	UserDeleted{}.Kind():            on(applyUserDeleted),
	APITokenCreated{}.Kind():        on(applyAPITokenCreated),
	APITokenRevoked{}.Kind():        on(applyAPITokenRevoked),
	SessionCreated{}.Kind():         on(applySessionCreated),
	SessionEnded{}.Kind():           on(applySessionEnded),
	WebhookCreated{}.Kind():         on(applyWebhookCreated),
	WebhookChanged{}.Kind():         on(applyWebhookChanged),
	WebhookDeleted{}.Kind():         on(applyWebhookDeleted),
	WebhookTested{}.Kind():          on(applyWebhookTested),
	AlertNotifying{}.Kind():         on(applyAlertNotifying),
	AlertNotified{}.Kind():          on(applyAlertNotified),
	WebhookRefreshed{}.Kind():       on(applyWebhookRefreshed),
	SessionsEnded{}.Kind():          on(applySessionsEnded),
	LoginsTried{}.Kind():            on(applyLoginsTried),
	EpochBegun{}.Kind():             on(applyEpochBegun),
	BackupTaken{}.Kind():            on(applyBackupTaken),
	ServerStandbyChanged{}.Kind():   on(applyServerStandbyChanged),
	HostDenied{}.Kind():             on(applyHostDenied),
	GossipRotationBegun{}.Kind():    on(applyGossipRotationBegun),
	GossipRotationAdvanced{}.Kind(): on(applyGossipRotationAdvanced),
	HostQuarantined{}.Kind():        on(applyHostQuarantined),
	HostQuarantineLifted{}.Kind():   on(applyHostQuarantineLifted),
	AlertRaised{}.Kind():            on(applyAlertRaised),
	CARotationBegun{}.Kind():        on(applyCARotationBegun),
	CASwitched{}.Kind():             on(applyCASwitched),
	CARetired{}.Kind():              on(applyCARetired),

	FleetUpdateWithServersStarted{}.Kind(): on(applyFleetUpdateWithServersStarted),
}
