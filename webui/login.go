package webui

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"moult/consensus/fleet"
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

// unknownUserHash is compared with the password of a user who does not exist, so
// that the time an answer takes does not tell who does.
var unknownUserHash = sync.OnceValues(func() (string, error) { return HashPassword("nobody has this password") })

func (u *ui) login(w http.ResponseWriter, r *http.Request) error {
	release := limitBody(w, r, maxLoginForm)
	err := r.ParseForm()
	release()
	if err != nil {
		return badRequest("the form cannot be read; go back and send it again")
	}
	name, password := r.PostForm.Get("username"), r.PostForm.Get("password")
	view := loginView{Next: localPath(r.PostForm.Get("next")), Username: name}

	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = r.RemoteAddr
	}
	if len(name) > fleet.MaxNameBytes {
		name = name[:fleet.MaxNameBytes]
	}
	refund, allowed := u.logins.attempt("address "+address, "user "+name)
	if !allowed {
		w.Header().Set("Retry-After", fmt.Sprint(int(loginRefill.Seconds())))
		view.Error = "Too many attempts. Wait a few seconds, then try again."
		return u.showLogin(w, http.StatusTooManyRequests, view)
	}
	user, right, err := u.checkLogin(r, name, password)
	if err != nil {
		return err
	}
	if !right {
		u.Logger.Warn("login refused", "address", address)
		view.Error = "Wrong name or password."
		return u.showLogin(w, http.StatusUnauthorized, view)
	}
	refund()
	if err := u.openSession(w, r, user); err != nil {
		return err
	}
	http.Redirect(w, r, view.Next, http.StatusSeeOther)
	return nil
}

// checkLogin tells whether the password is the user's.
func (u *ui) checkLogin(r *http.Request, name, password string) (fleet.User, bool, error) {
	if err := u.logins.awaitKDF(r.Context()); err != nil {
		return fleet.User{}, false, err
	}
	defer u.logins.kdf.give()
	user, exists := u.View().UserByName(name)
	hash := user.PasswordHash
	if !exists {
		var err error
		if hash, err = unknownUserHash(); err != nil {
			return fleet.User{}, false, err
		}
	}
	right, err := CheckPassword(hash, password)
	if err != nil {
		return fleet.User{}, false, fmt.Errorf("check the password of %s: %w", name, err)
	}
	return user, right && exists, nil
}

func (u *ui) logout(w http.ResponseWriter, r *http.Request) error {
	if err := u.closeSession(w, r); err != nil {
		return err
	}
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}
