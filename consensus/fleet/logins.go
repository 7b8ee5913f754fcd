package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"
)

// Attempts to sign in are counted by what is tried and from where: for a name
// from a network, from a network whatever the name, and for a name from
// wherever. Each count has a number that costs nothing; beyond it one has to wait
// after each further attempt, longer and longer up to a limit. Attempts fade,
// and a right password takes back what it cost. So nobody who waits is kept out
// for good.
//
// An attempt is an entry of the log before the password is looked at, and Apply
// decides whether it is admitted: the log has one order, so that whoever goes
// from server to server, or tries at all of them at once, has no more attempts
// than at one. A change of leader changes nothing either.
//
// The count for a name alone is one that anybody can drive up who knows the name.
// It is soft, and neither it nor the network's counts where the user has signed in
// from before.
var (
	loginsOfPair    = loginLimit{free: 10, first: 6 * time.Second, most: 5 * time.Minute, fade: 10 * time.Minute}
	loginsOfNetwork = loginLimit{free: 10, first: 6 * time.Second, most: 30 * time.Second, fade: 30 * time.Second}
	loginsOfName    = loginLimit{free: 50, first: 6 * time.Second, most: 30 * time.Second, fade: time.Minute}
)

const (
	// loginForget is after how long without an attempt a count is dropped; each has
	// faded by then.
	loginForget = 4 * time.Hour
	// loginAuditEvery is the least time between two audit entries of attempts: a
	// flood of guesses must not push everything else out of the audit.
	loginAuditEvery = time.Minute
	// loginClockSkew is how far ahead of this server's clock an attempt may lie. One
	// further ahead is of a clock that was wrong, and keeps nobody out until then.
	loginClockSkew = time.Minute
	// loginMaxSteps is how far above free a count goes: that far the wait grows.
	loginMaxSteps = 8
	// loginAdmissions is how many admitted attempts of a pair are remembered: more
	// than can be admitted before whoever asks has looked.
	loginAdmissions = 16
)

// loginLimit is what attempts of one kind cost.
type loginLimit struct {
	free        int           // attempts before one has to wait
	first, most time.Duration // the wait after that one; it doubles with each further one, up to most
	fade        time.Duration // in which one attempt is forgotten
}

// wait is how long after an attempt the next one may be made.
func (l loginLimit) wait(tries int) time.Duration {
	if tries < l.free {
		return 0
	}
	return min(l.first<<min(tries-l.free, loginMaxSteps), l.most)
}

// faded is how many of a count's attempts still count. A time before the last one
// is of another server's clock.
func (l loginLimit) faded(r loginRow, at time.Time) int {
	return max(0, r.Tries-int(max(0, at.Sub(r.Last))/l.fade))
}

// loginRow is one count of attempts.
type loginRow struct {
	Key      string    `json:"key"`
	Tries    int       `json:"tries"` // as of Last
	Last     time.Time `json:"last"`
	Admitted []string  `json:"admitted,omitempty"` // the newest attempts, of pairs alone
	Index    uint64    `json:"index"`              // of the entry that counted last
}

// loginCount names one count and its limit.
type loginCount struct {
	key   string
	limit loginLimit
}

// loginCounts returns the counts that an attempt belongs to, that of the pair first.
func loginCounts(name, network string) []loginCount {
	return []loginCount{
		{"pair " + name + " " + network, loginsOfPair},
		{"network " + network, loginsOfNetwork},
		{"name " + name, loginsOfName},
	}
}

// unknownNameMark begins what LoginName makes of a name that nobody has: no
// user's name begins like that.
const unknownNameMark = "~"

// LoginName returns the name under which attempts are counted: the user's own,
// or for a name that nobody has one of 4096 that tells nothing of it. What people
// type there may be a password, and belongs into no log.
func (v View) LoginName(typed string) string {
	if _, exists := v.UserByName(typed); exists {
		return typed
	}
	sum := sha256.Sum256([]byte(typed))
	return unknownNameMark + hex.EncodeToString(sum[:2])[:3]
}

// KnownFrom tells whether a user has signed in from a network before.
func (v View) KnownFrom(name, network string) bool {
	u, _ := v.UserByName(name)
	return slices.Contains(u.KnownFrom, network)
}

// LoginWait returns how long the next attempt for a name (see LoginName) from a
// network has to wait.
func (v View) LoginWait(name, network string, now time.Time) time.Duration {
	counts := loginCounts(name, network)
	if v.KnownFrom(name, network) {
		counts = counts[:1]
	}
	var wait time.Duration
	for _, c := range counts {
		r, _ := first[loginRow](v.txn, tableLogins, "id", c.key)
		if elapsed := now.Sub(r.Last); elapsed > -loginClockSkew {
			wait = max(wait, c.limit.wait(r.Tries)-max(0, elapsed))
		}
	}
	return wait
}

// LoginAdmitted tells whether the password of an attempt may be looked at. The
// view is one of soon after its entry was applied.
func (v View) LoginAdmitted(try LoginTry) bool {
	r, _ := first[loginRow](v.txn, tableLogins, "id", loginCounts(try.Name, try.Network)[0].key)
	return slices.Contains(r.Admitted, try.ID)
}
