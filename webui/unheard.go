package webui

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// A server that was just started has heard of nobody. What it would take for
// offline may be online all the time, and a fleet update that it starts would pass
// over it. So for a while after its start a host that it has never heard of is
// neither online nor offline, and what depends on it waits.
const (
	// heardBy is how long after its start a server has heard of every host that is
	// online: gossip and relays tell everything every ten seconds, and so often does
	// who lost touch look for the others.
	heardBy = 30 * time.Second
	// unheardPatience is how long a request waits for hosts to be heard of.
	unheardPatience = 12 * time.Second
	// unheardNames is how many of them are named.
	unheardNames = 5
)

// notHeardOf returns the agents that this server has never heard of while that may
// be because it was just started; after that there are none.
func (p picture) notHeardOf() map[string]bool {
	if !p.now.Before(p.started.Add(heardBy)) {
		return nil
	}
	unheard := map[string]bool{}
	for _, h := range p.agents() {
		if _, seen := p.observed[h.ID]; !seen {
			unheard[h.ID] = true
		}
	}
	return unheard
}

// awaitHeard returns a picture in which this server has heard of every agent that an
// update is about: of one, or with id "" of all. Where that takes longer than a
// request may it refuses.
func (u *ui) awaitHeard(r *http.Request, id string) (picture, error) {
	patience := time.NewTimer(unheardPatience)
	defer patience.Stop()
	for waited := false; ; {
		changed := u.Changed() // before looking
		p := u.picture()
		if len(p.unheard) == 0 || id != "" && !p.unheard[id] {
			return p, nil
		}
		if waited {
			return p, refuse(codeHostsUnheard, p.whyUnheard())
		}
		over := time.NewTimer(p.started.Add(heardBy).Sub(p.now))
		select {
		case <-changed:
		case <-over.C:
		case <-patience.C:
			waited = true // one more look
		case <-r.Context().Done():
			return p, r.Context().Err()
		}
		over.Stop()
	}
}

// whyUnheard tells what is the matter, and what to do.
func (p picture) whyUnheard() string {
	var names []string
	for _, h := range p.agents() {
		if p.unheard[h.ID] && len(names) < unheardNames {
			names = append(names, h.Name)
		}
	}
	if more := len(p.unheard) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("this server was started %s ago and has not heard of %s yet (%s); try again: who is silent in %s counts as offline",
		p.now.Sub(p.started).Round(time.Second), count(len(p.unheard), "host"), strings.Join(names, ", "), p.started.Add(heardBy).Sub(p.now).Round(time.Second))
}
