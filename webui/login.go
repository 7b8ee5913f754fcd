package webui

import (
	"net/http"
	"net/url"
	"strings"
)

// loginView is what the login page shows.
type loginView struct {
	shell
	Next, Username, Error string
}

func (u *ui) loginPage(w http.ResponseWriter, r *http.Request) error {
	next := localPath(r.URL.Query().Get("next"))
	if callerOf(r).Role != "" {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return nil
	}
	return u.showLogin(w, http.StatusOK, loginView{Next: next})
}

func (u *ui) showLogin(w http.ResponseWriter, status int, v loginView) error {
	v.Title = "Sign in"
	return u.pages.write(w, status, "login", "page", v)
}

// localPath lets only paths of this server through: the login page must not send
// people elsewhere.
func localPath(next string) string {
	target, err := url.Parse(next)
	if err != nil || target.IsAbs() || target.Host != "" || !strings.HasPrefix(next, "/") ||
		strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\r\n\t") {
		return "/"
	}
	return next
}

// readForm reads a form of the pages without JavaScript into r.PostForm.
func readForm(w http.ResponseWriter, r *http.Request) error {
	defer limitBody(w, r, maxLoginForm)()
	if err := r.ParseForm(); err != nil {
		return badRequest("the form cannot be read; go back and send it again")
	}
	return nil
}

func (u *ui) login(w http.ResponseWriter, r *http.Request) error {
	if err := readForm(w, r); err != nil {
		return err
	}
	name, password := r.PostForm.Get("username"), r.PostForm.Get("password")
	view := loginView{Next: localPath(r.PostForm.Get("next")), Username: name}

	user, err := u.tryPassword(w, r, name, password)
	switch code := codeOf(err); {
	case code == codeTooManyAttempts:
		view.Error = sentence(err.Error())
		return u.showLogin(w, http.StatusTooManyRequests, view)
	case code == codeWrongPassword:
		u.Logger.Warn("login refused", "address", clientAddress(r))
		view.Error = "Wrong name or password."
		return u.showLogin(w, http.StatusUnauthorized, view)
	case err != nil:
		return err
	}
	if err := u.openSession(w, r, user); err != nil {
		return err
	}
	if user.MustChangePassword {
		view.Next = chooseFor(view.Next)
	}
	http.Redirect(w, r, view.Next, http.StatusSeeOther)
	return nil
}

func (u *ui) logout(w http.ResponseWriter, r *http.Request) error {
	if err := u.closeSession(w, r); err != nil {
		return err
	}
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}
