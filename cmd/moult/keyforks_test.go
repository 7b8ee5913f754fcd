package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater"
)

// A host that reports two key statements with one number opens an alert that names
// it; it repeats its report, and that opens no other.
func TestForkedReleaseKeysAreToldOf(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	raft, propose := startLoneCluster(ctx, t, "web-1")
	in := &reportInbox{raft: raft, observer: newObserver(nil), logger: quiet}
	say := func(hostID string, f updater.KeyFork) {
		t.Helper()
		payload, err := json.Marshal(updater.Report{KeyFork: &f})
		must(t, err)
		in.handle(identity.Identity{HostID: hostID, Name: "web-1", Role: identity.RoleAgent}, payload)
	}
	alerts := func() []fleet.Alert { return raft.State().View().Alerts() }
	one, other, third := strings.Repeat("1a", 32), strings.Repeat("2b", 32), strings.Repeat("3c", 32)
	for _, bad := range []updater.KeyFork{
		{}, {Number: 1}, {Number: 1, Refused: "../../x"}, {Refused: other}, {Number: 1, Follows: "x", Refused: other}, {Number: 1, Refused: strings.ToUpper(other)},
	} {
		say("s1", bad)
	}
	say("h9", updater.KeyFork{Number: 1, Follows: one, Refused: other})
	if got := alerts(); len(got) != 0 {
		t.Fatalf("alerts %+v", got)
	}

	say("s1", updater.KeyFork{Number: 2, Follows: one, Refused: other})
	say("s1", updater.KeyFork{Number: 2, Follows: one, Refused: other})
	got := alerts()
	if len(got) != 1 || got[0].Kind != "forked_release_keys" || got[0].HostID != "s1" || got[0].Status != fleet.AlertStatusOpen {
		t.Fatalf("alerts %+v", got)
	}
	for _, word := range []string{"web-1", "number 2", one[:16], other[:16], "docs/security.md"} {
		if !strings.Contains(got[0].Message, word) {
			t.Errorf("the message has no %q: %s", word, got[0].Message)
		}
	}
	propose(fleet.AlertAcknowledged{AlertID: got[0].ID})
	say("s1", updater.KeyFork{Number: 2, Follows: one, Refused: other})
	if got := alerts(); len(got) != 1 {
		t.Errorf("what was acknowledged is told again: %+v", got)
	}
	say("s1", updater.KeyFork{Number: 2, Refused: third})
	if got := alerts(); len(got) != 2 || !strings.Contains(got[0].Message, "when it joined") {
		t.Errorf("alerts %+v", got)
	}
}
