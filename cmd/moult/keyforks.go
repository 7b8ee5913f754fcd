package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"moult/consensus/fleet"
	"moult/updater"
)

// forkAlert is the alert over two key statements with one number that a host reports.
// The same report opens none again, not after somebody has acknowledged it either: the
// host repeats it for as long as it remembers. A host speaks of itself alone.
func forkAlert(v fleet.View, hostID string, f *updater.KeyFork) (alert fleet.AlertRaised, raise bool) {
	if f == nil || f.Number == 0 || !isSHA256(f.Refused) || f.Follows != "" && !isSHA256(f.Follows) {
		return alert, false
	}
	h, enrolled := v.Host(hostID)
	if !enrolled {
		return alert, false
	}
	alert = fleet.AlertRaised{AlertKind: fleet.AlertForkedReleaseKeys, HostID: hostID, Message: forkTold(h.Name, *f)}
	for _, a := range v.Alerts() {
		if a.Kind == alert.AlertKind && a.HostID == hostID && (a.Status == fleet.AlertStatusOpen || a.Message == alert.Message) {
			return alert, false
		}
	}
	return alert, true
}

// forkTold says for people what was seen, and what to do. It is the same whenever the
// host says the same.
func forkTold(name string, f updater.KeyFork) string {
	follows := "the keys that it got when it joined"
	if f.Follows != "" {
		follows = "that of sha256 " + f.Follows[:shortHash]
	}
	return fmt.Sprintf("%s was offered two statements of the release keys with the number %d: it follows %s and refuses that of sha256 %s; either a release key is in wrong hands, or the servers were restored from before the first one: compare both with your keys*.json (sha256sum), then see docs/security.md, A release key",
		name, f.Number, follows, f.Refused[:shortHash])
}

// shortHash is how much of a sha256 people are shown, in hex digits.
const shortHash = 16

func isSHA256(text string) bool {
	raw, err := hex.DecodeString(text)
	return err == nil && len(raw) == 32 && strings.ToLower(text) == text
}

// raise opens an alert. What cannot be committed now, the host says again.
func (in *reportInbox) raise(alert fleet.AlertRaised) {
	in.logger.Error("the release keys are forked", "host", alert.HostID, "told", alert.Message)
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	if _, err := in.raft.Propose(ctx, "coordinator", alert); err != nil {
		in.logger.Warn("raise an alert", "kind", alert.AlertKind, "error", err)
	}
}
