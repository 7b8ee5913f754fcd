package webui

import (
	"net/http"
	"net/url"
	"strings"

	"moult/consensus/fleet"
)

// choosePath is where people choose a password of their own before they do
// anything else.
const choosePath = "/choose-password"

// chooseFor is that page, which leads on to where somebody was going.
func chooseFor(next string) string { return choosePath + "?next=" + url.QueryEscape(next) }

// sendToChoose answers a request of somebody who has to choose a password first.
func (u *ui) sendToChoose(w http.ResponseWriter, r *http.Request) error {
	if !wantsJSON(r) && !wantsFragment(r) {
		http.Redirect(w, r, chooseFor(r.URL.RequestURI()), http.StatusSeeOther)
		return nil
	}
	if wantsFragment(r) {
		w.Header().Set("HX-Redirect", chooseFor(r.URL.RequestURI())) // the whole page goes there
	}
	return refuse(codeMustChange, "your password was set for you; choose one of your own at "+choosePath+" first")
}

// chooseView is what the page shows. Errors has what is wrong by field.
type chooseView struct {
	shell
	Next   string
	Min    int // bytes of a password
	Max    int
	Errors map[string]string
}

func (u *ui) choosePage(w http.ResponseWriter, r *http.Request) error {
	user, err := u.account(r)
	if err != nil {
		return err
	}
	if !user.MustChangePassword {
		http.Redirect(w, r, "/settings/users", http.StatusSeeOther)
		return nil
	}
	return u.showChoose(w, r, http.StatusOK, r.URL.Query().Get("next"), nil)
}

func (u *ui) showChoose(w http.ResponseWriter, r *http.Request, status int, next string, errors map[string]string) error {
	v := &chooseView{Next: localPath(next), Min: minPasswordBytes, Max: maxPasswordBytes, Errors: errors}
	v.Title, v.Caller = "Choose a password", callerOf(r)
	return u.pages.write(w, status, "choose-password", "page", v)
}

// choosePassword sets it and signs the user in again: all sessions of the old
// password have ended, this one among them.
func (u *ui) choosePassword(w http.ResponseWriter, r *http.Request) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	user, err := u.account(r)
	if err != nil {
		return err
	}
	next, chosen := r.PostForm.Get("next"), r.PostForm.Get("new_password")
	if !user.MustChangePassword {
		http.Redirect(w, r, "/settings/users", http.StatusSeeOther)
		return nil
	}
	if chosen != r.PostForm.Get("repeated") {
		return u.showChoose(w, r, http.StatusBadRequest, next, map[string]string{"repeated": "The two passwords differ."})
	}
	user, err = u.replacePassword(w, r, r.PostForm.Get("current_password"), chosen)
	if code := codeOf(err); code == fleet.CodeBadRequest || code == codeTooManyAttempts {
		field, text, named := strings.Cut(err.Error(), ": ")
		switch {
		case !named:
			field, text = "current_password", err.Error()
		case field == "password": // its length
			field = "new_password"
		}
		return u.showChoose(w, r, statusOf(code), next, map[string]string{field: sentence(text)})
	}
	if err != nil {
		return err
	}
	if err := u.openSession(w, r, user); err != nil {
		return err
	}
	http.Redirect(w, r, localPath(next), http.StatusSeeOther)
	return nil
}
