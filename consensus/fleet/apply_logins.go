package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// checkLoginTry refuses an attempt that is not complete.
func checkLoginTry(c LoginTry) *Error {
	switch {
	case !validID(c.ID):
		return refuse(CodeBadRequest, "tries.id %q: %s", clip(c.ID, MaxIDBytes), nameRule)
	case !ValidName(strings.TrimPrefix(c.Name, unknownNameMark)):
		return refuse(CodeBadRequest, "tries.name %q: %s", clip(c.Name, MaxNameBytes), nameRule)
	case !validNetwork(c.Network):
		return refuse(CodeBadRequest, "tries.network %q: %s", clip(c.Network, MaxFromBytes), networkRule)
	}
	return nil
}

func applyLoginsTried(t *tx, c LoginsTried) *Error {
	if n := len(c.Tries); n == 0 || n > MaxLoginTries {
		return refuse(CodeBadRequest, "tries has %d entries; give 1 to %d", n, MaxLoginTries)
	}
	var reached []string
	networks := map[string]bool{}
	for _, try := range c.Tries {
		if refused := checkLoginTry(try); refused != nil {
			return refused
		}
		if t.view().LoginWait(try.Name, try.Network, t.at) > 0 {
			continue // not admitted
		}
		for i, count := range loginCounts(try.Name, try.Network) {
			id := ""
			if i == 0 {
				id = try.ID
			}
			if tries, now := t.countLogin(count, id); now {
				reached = append(reached, reachedLimit(i, tries, try, count.limit))
				networks[try.Network] = true
				t.from = try.Network
			}
		}
	}
	if len(networks) > 1 {
		t.from = "" // the detail names them
	}
	t.forgetLogins()
	t.auditLogins(reached)
	return nil
}

// countLogin adds an attempt to a count, and tells whether from now on one has to wait.
func (t *tx) countLogin(c loginCount, id string) (tries int, reached bool) {
	r, exists := first[loginRow](t.Txn, tableLogins, "id", c.key)
	if !exists {
		t.added.loginRows++
	}
	before := c.limit.faded(r, t.at)
	tries = min(before+1, c.limit.free+loginMaxSteps)
	admitted := r.Admitted
	if id != "" {
		admitted = append(slices.Clone(admitted[max(0, len(admitted)-loginAdmissions+1):]), id)
	}
	t.put(tableLogins, loginRow{Key: c.key, Tries: tries, Last: t.at, Admitted: admitted, Index: t.index})
	return tries, before < c.limit.free && tries >= c.limit.free
}

// reachedLimit tells people of a limit that was reached; i is its place among
// loginCounts.
func reachedLimit(i, tries int, try LoginTry, l loginLimit) string {
	name := try.Name
	if strings.HasPrefix(name, unknownNameMark) {
		name = "a name that nobody has"
	}
	what := []string{"for " + name + " from " + try.Network, "from " + try.Network, "for " + name}[i]
	return fmt.Sprintf("%d passwords tried %s, the next attempt after %s", tries, what, l.wait(tries))
}

// auditLogins tells of limits that were reached, or keeps their number for the
// next entry when the last one was a moment ago.
func (t *tx) auditLogins(reached []string) {
	m := t.view().meta()
	switch {
	case len(reached) == 0:
		t.unaudited()
		return
	case !m.LoginsToldAt.IsZero() && absolute(t.at.Sub(m.LoginsToldAt)) < loginAuditEvery:
		m.LoginsUntold += len(reached)
		t.unaudited()
	default:
		detail := strings.Join(reached, "; ")
		if m.LoginsUntold > 0 {
			detail = fmt.Sprintf("since the entry before %d more; %s", m.LoginsUntold, detail)
		}
		t.audit("sign-in", detail)
		m.LoginsToldAt, m.LoginsUntold = t.at, 0
	}
	t.put(tableMeta, m)
}

func absolute(d time.Duration) time.Duration { return max(d, -d) }

// forgetLogins drops counts whose last attempt was long ago.
func (t *tx) forgetLogins() {
	var old []loginRow
	for r := range each[loginRow](t.Txn, tableLogins, "index") {
		if absolute(t.at.Sub(r.Last)) < loginForget {
			break
		}
		old = append(old, r)
	}
	for _, r := range old {
		t.remove(tableLogins, r)
		t.added.loginRows--
	}
}

// signedInFrom takes back what a right password cost, with the user's own
// attempts from a network before it, and remembers the network.
func (t *tx) signedInFrom(u User, network string) {
	for i, c := range loginCounts(u.Name, network) {
		r, exists := first[loginRow](t.Txn, tableLogins, "id", c.key)
		if !exists {
			continue
		}
		if r.Tries--; i == 0 || r.Tries <= 0 {
			t.remove(tableLogins, r)
			t.added.loginRows--
			continue
		}
		t.put(tableLogins, r)
	}
	if slices.Contains(u.KnownFrom, network) {
		return
	}
	known := append([]string{network}, u.KnownFrom...)
	u.KnownFrom = known[:min(len(known), MaxKnownNetworks)]
	t.put(tableUsers, u)
}
