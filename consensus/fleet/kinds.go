package fleet

import (
	"maps"
	"slices"
)

// Kinds returns all kinds of changes that this version knows, in order.
func Kinds() []string { return slices.Sorted(maps.Keys(appliers)) }

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
