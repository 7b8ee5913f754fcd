package webui

import (
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
	if _, err := u.replacePassword(w, r, in.Current, in.New); err != nil {
		return err
	}
	setSessionCookie(w, r, "", -1)
	return done(w)
}

// replacePassword sets the password of whoever sent a request, which is known
// to be that one's own wish by the present one.
func (u *ui) replacePassword(w http.ResponseWriter, r *http.Request, current, chosen string) (fleet.User, error) {
	user, err := u.account(r)
	if err != nil {
		return user, err
	}
	if err := checkPasswordRules(chosen); err != nil { // before it costs an attempt
		return user, badRequest("password: %v", err)
	}
	if _, err := u.tryPassword(w, r, user.Name, current); codeOf(err) == codeWrongPassword {
		return user, badRequest("current_password: this is not your password")
	} else if err != nil {
		return user, err
	}
	if chosen == current {
		return user, badRequest("new_password: it is the present one; choose another")
	}
	hash, err := u.hashNewPassword(r, chosen)
	if err != nil {
		return user, err
	}
	return user, u.propose(r, fleet.UserChanged{UserID: user.ID, PasswordHash: hash})
}

// endOwnSessions signs the user out everywhere.
func (u *ui) endOwnSessions(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	user, err := u.account(r)
	if err != nil {
		return err
	}
	if err := u.propose(r, fleet.SessionsEnded{UserID: user.ID}); err != nil {
		return err
	}
	setSessionCookie(w, r, "", -1)
	return done(w)
}
