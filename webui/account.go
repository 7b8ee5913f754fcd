package webui

import (
	"fmt"
	"net/http"
	"strings"

	"moult/consensus/fleet"
)

// account returns the user who sent a request. An API token has no account.
func (u *ui) account(r *http.Request) (fleet.User, error) {
	name, isUser := strings.CutPrefix(callerOf(r).Actor, "user:")
	user, exists := u.View().UserByName(name)
	if !isUser || !exists {
		return user, refuse(codeNoAccount, callerOf(r).Name+" is an API token and has no account; sign in with a name and a password")
	}
	return user, nil
}

// changeOwnPassword takes the present password too: a browser left open must not
// be enough. All of the user's sessions end, this one among them.
func (u *ui) changeOwnPassword(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Current string `json:"current_password"`
		New     string `json:"new_password"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	user, err := u.account(r)
	if err != nil {
		return err
	}
	refund, allowed := u.logins.attempt("user " + user.Name)
	if !allowed {
		w.Header().Set("Retry-After", fmt.Sprint(int(loginRefill.Seconds())))
		return refuse(codeTooManyAttempts, "too many wrong passwords; wait a few seconds, then try again")
	}
	_, right, err := u.checkLogin(r, user.Name, in.Current)
	if err != nil {
		return err
	}
	if !right {
		return badRequest("current_password: this is not your password")
	}
	refund()
	if in.New == in.Current {
		return badRequest("new_password: it is the present one; choose another")
	}
	hash, err := u.hashNewPassword(r, in.New)
	if err != nil {
		return err
	}
	if err := u.propose(r, fleet.UserChanged{UserID: user.ID, PasswordHash: hash}); err != nil {
		return err
	}
	setSessionCookie(w, r, "", -1)
	return done(w)
}

// endOwnSessions signs the user out everywhere. The state ends a user's sessions
// when the role is set, to the same one too; a change of its own for this would be
// refused by servers that do not know it yet.
func (u *ui) endOwnSessions(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	user, err := u.account(r)
	if err != nil {
		return err
	}
	if err := u.propose(r, fleet.UserChanged{UserID: user.ID, Role: user.Role}); err != nil {
		return err
	}
	setSessionCookie(w, r, "", -1)
	return done(w)
}
