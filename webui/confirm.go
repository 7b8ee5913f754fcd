package webui

import (
	"net/http"
	"time"

	"moult/consensus/fleet"
)

// confirmedFor is how long after somebody has typed the password a session may do
// what is dangerous.
const confirmedFor = 10 * time.Minute

// dangerous are the operations that a browser left open must not be enough for:
// what lets somebody in or keeps somebody out, what others' secrets come out of,
// and what cannot be undone. Starting an update is not among them: it runs what is
// signed, takes the number of hosts, and can be cancelled; it must not take a
// password in the middle of an outage. API tokens are exempt: they are held by
// programs, and nobody is there to ask.
var dangerous = map[string]bool{
	"DELETE /api/hosts/{id}":               true,
	"POST /api/hosts/{id}/lift-quarantine": true,
	"POST /api/gossip/rotate":              true,
	"POST /api/gossip/{segment}/force":     true, // hosts that lack the new key stay out
	"POST /api/ca/rotate":                  true,
	"POST /api/ca/advance":                 true, // hosts that did not follow stay out
	"POST /api/servers/{id}/remove":        true,
	"POST /api/release-keys":               true,
	"POST /api/users":                      true,
	"PATCH /api/users/{id}":                true,
	"DELETE /api/users/{id}":               true,
	"POST /api/tokens":                     true,
	"DELETE /api/tokens/{id}":              true,
	"POST /api/join-tokens":                true,
	"GET /api/backup":                      true, // it holds the CA's key
}

// mustConfirm tells whether somebody has to type the password again first.
func (u *ui) mustConfirm(rt route, who caller) bool {
	return dangerous[rt.method+" "+rt.pattern] && !who.SignedInAt.IsZero() && u.Now().Sub(who.SignedInAt) >= confirmedFor
}

var errConfirmFirst = refuse(codeConfirmFirst, "this takes the password once more, as you signed in a while ago; send it to POST /api/account/confirm, then try again")

// confirm takes the password again. It is a new session in place of the one that
// asks: what a session may do depends on its age alone, at each server.
func (u *ui) confirm(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Password string `json:"password"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	user, err := u.account(r)
	if err != nil {
		return err
	}
	if _, err := u.tryPassword(w, r, user.Name, in.Password); codeOf(err) == codeWrongPassword {
		return badRequest("password: this is not your password")
	} else if err != nil {
		return err
	}
	if err := u.openSession(w, r, user); err != nil {
		return err
	}
	if cookie, err := r.Cookie(sessionCookieOf(r)); err == nil {
		if err := u.proposeAs(r.Context(), callerOf(r).Actor, fleet.SessionEnded{Hash: hashSecret(cookie.Value)}); err != nil {
			return err
		}
	}
	return ok(w, map[string]time.Time{"confirmed_until": u.Now().Add(confirmedFor).UTC()})
}
