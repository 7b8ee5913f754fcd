package fleet

import (
	"encoding/json"
	"maps"
	"slices"
)

// Kinds returns all kinds of changes that this version knows, in order.
func Kinds() []string { return slices.Sorted(maps.Keys(appliers)) }

// What later versions let old kinds of changes say. An older server refuses an entry
// that says it, and so its state would differ.
const (
	featureAllAlertKinds     = "webhooks_of_all_alert_kinds"
	featureForkedReleaseKeys = "alert_" + AlertForkedReleaseKeys // raised, or named by a webhook
)

// Known returns what a server of this version tells the others that it knows: all
// kinds of changes, and the features above.
func Known() []string { return append(Kinds(), featureAllAlertKinds, featureForkedReleaseKeys) }

// Needs returns what of Known a server has to know to apply the entry as this
// version does.
func (e Entry) Needs() []string {
	needs := []string{e.Type}
	var kinds []string
	switch e.Type {
	case WebhookCreated{}.Kind():
		var c WebhookCreated
		if json.Unmarshal(e.Body, &c) == nil {
			kinds = c.Webhook.Kinds
		}
	case WebhookChanged{}.Kind():
		var c WebhookChanged
		if json.Unmarshal(e.Body, &c) == nil && c.Kinds != nil {
			kinds = *c.Kinds
		}
	case AlertRaised{}.Kind():
		var c AlertRaised
		if json.Unmarshal(e.Body, &c) == nil && c.AlertKind == AlertForkedReleaseKeys {
			needs = append(needs, featureForkedReleaseKeys)
		}
	}
	if slices.ContainsFunc(kinds, func(k string) bool { return !slices.Contains(firstAlertKinds, k) }) {
		needs = append(needs, featureAllAlertKinds)
	}
	if slices.Contains(kinds, AlertForkedReleaseKeys) {
		needs = append(needs, featureForkedReleaseKeys)
	}
	return needs
}

// FirstKinds returns the kinds that every version knows. Never add one: what came
// later is held back while an older server is in the group (consensus.Config.Kinds).
func FirstKinds() []string { return slices.Clone(firstKinds) }

var firstKinds = kindsOf(
	ClusterInitialized{}, JoinTokenCreated{}, HostEnrolled{}, HostRemoved{}, HostAddressesChanged{},
	ReleasePublished{}, ReleaseWithdrawn{}, JobCreated{}, JobDispatched{}, JobFinished{}, JobLogAppended{},
	FleetUpdateStarted{}, FleetUpdateHostSkipped{}, FleetUpdateHalted{}, FleetUpdateCompleted{},
	FleetUpdatePaused{}, FleetUpdateResumed{}, FleetUpdateCancelled{}, AlertResolved{}, AlertAcknowledged{},
	UserCreated{}, UserChanged{}, UserDeleted{}, APITokenCreated{}, APITokenRevoked{}, SessionCreated{}, SessionEnded{},
)

func kindsOf(changes ...Change) (kinds []string) {
	for _, c := range changes {
		kinds = append(kinds, c.Kind())
	}
	slices.Sort(kinds)
	return kinds
}
