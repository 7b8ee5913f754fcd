package webui

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"time"

	"moult/consensus/fleet"
)

// Sessions of browsers.
const (
	sessionCookie   = "moult_session" // on plain HTTP
	sessionLifetime = 12 * time.Hour
	// hostSessionCookie is its name over TLS. Browsers take such a name only over TLS
	// and from the host itself, so neither another host of the domain nor somebody
	// on a plain connection can put one in.
	hostSessionCookie = "__Host-" + sessionCookie
)

// caller is who sent a request.
type caller struct {
	Name  string // "alice", or the token's name
	Actor string // "user:alice" or "token:ci", as the audit has it
	Role  fleet.UserRole
	// MustChange: it is a session of somebody who has to choose a password first.
	MustChange bool
	// SignedInAt is when a session's user typed the password; zero for an API token.
	SignedInAt time.Time
}

type callerKey struct{}

type knownKey struct{}

// WithKnown has requests call known once it is known who sent them: the owner of the
// connections may then think better of one.
func WithKnown(ctx context.Context, known func()) context.Context {
	return context.WithValue(ctx, knownKey{}, known)
}

func senderIsKnown(ctx context.Context) {
	if known, ok := ctx.Value(knownKey{}).(func()); ok {
		known()
	}
}

// callerOf returns who sent a request that came through guard.
func callerOf(r *http.Request) caller {
	c, _ := r.Context().Value(callerKey{}).(caller)
	return c
}

// guard lets a request through to its route's handler if its sender has the
// role. Whoever has to choose a password first comes to public routes and to the
// page where that is done, and to nothing else.
func (u *ui) guard(rt route) http.Handler {
	var origin http.CrossOriginProtection
	role := rt.role
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, known := u.authenticate(r)
		if known {
			senderIsKnown(r.Context())
		}
		err := func() error {
			if asks := r.Header.Get(readHeader); role != public && known && asks != "" {
				if err := u.catchUp(r, asks); err != nil {
					return err
				}
				who, known = u.authenticate(r) // by the same state as all else
			}
			if role != public && !known && offersLogin(r) {
				// Who that is may stand in what this server has not read yet.
				if err := u.readyOrElse(); err != nil {
					return err
				}
			}
			switch {
			case role != public && !known && wantsFragment(r):
				w.Header().Set("HX-Redirect", loginFor(r)) // the whole page goes there
				return refuse(codeUnauthenticated, "the session is over; sign in again")
			case role != public && !known && !wantsJSON(r):
				http.Redirect(w, r, loginFor(r), http.StatusSeeOther)
				return nil
			case role != public && !known:
				return refuse(codeUnauthenticated, "sign in, or send a valid API token as \"Authorization: Bearer TOKEN\"")
			case !hasBearer(r) && origin.Check(r) != nil:
				return refuse(codeCrossOrigin, "the request came from another site; use this server's own pages")
			case role != public && who.MustChange && rt.pattern != choosePath:
				return u.sendToChoose(w, r)
			case role != public && !who.Role.Includes(role):
				return refuse(codeForbidden, "this takes the role "+string(role)+", and "+who.Name+" is "+string(who.Role)+"; ask an admin")
			case u.mustConfirm(rt, who):
				return errConfirmFirst
			}
			return rt.handle(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
		}()
		if err != nil {
			u.render(w, r, err)
		}
	})
}

// readHeader has a read wait until this server's state contains everything that was
// acknowledged before the request, whichever server took it.
const (
	readHeader     = "Moult-Read"
	readLatest     = "latest"
	catchUpTimeout = 5 * time.Second
)

// catchUp does what a request's readHeader asks for.
func (u *ui) catchUp(r *http.Request, asks string) error {
	if asks != readLatest {
		return badRequest("%s: %s is not %s; leave the header out to read what this server has", readHeader, quoted(asks), readLatest)
	}
	ctx, cancel := context.WithTimeout(r.Context(), catchUpTimeout)
	defer cancel()
	if err := u.CatchUp(ctx); err != nil {
		return refuse(codeNotReady, err.Error()+"; without the header "+readHeader+" this server answers what it has")
	}
	return nil
}

// loginFor is the login page that leads back to where a request was for.
func loginFor(r *http.Request) string { return "/login?next=" + url.QueryEscape(r.URL.RequestURI()) }

// offersLogin tells whether a request says who sent it, true or not.
func offersLogin(r *http.Request) bool {
	_, err := r.Cookie(sessionCookieOf(r))
	return err == nil || hasBearer(r)
}

func hasBearer(r *http.Request) bool { return r.Header.Get("Authorization") != "" }

// authenticate finds out who sent a request. A request with an Authorization
// header is judged by that alone: the cookie counts only where the cross-origin
// check is made.
func (u *ui) authenticate(r *http.Request) (caller, bool) {
	v, now := u.View(), u.Now()
	if hasBearer(r) {
		scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return caller{}, false
		}
		t, ok := v.APITokenByHash(hashSecret(strings.TrimSpace(secret)))
		if !ok || t.ExpiresAt != nil && !now.Before(*t.ExpiresAt) {
			return caller{}, false
		}
		return caller{Name: t.Name, Actor: "token:" + t.Name, Role: t.Role}, true
	}
	cookie, err := r.Cookie(sessionCookieOf(r))
	if err != nil {
		return caller{}, false
	}
	session, ok := v.Session(hashSecret(cookie.Value))
	if !ok || !now.Before(session.ExpiresAt) {
		return caller{}, false
	}
	user, ok := v.User(session.UserID)
	if !ok {
		return caller{}, false
	}
	return caller{Name: user.Name, Actor: "user:" + user.Name, Role: user.Role, MustChange: user.MustChangePassword, SignedInAt: session.CreatedAt}, true
}

// hashSecret is how the state knows secrets: sha256, hex. They are random and
// long, so a plain hash is enough, unlike for passwords.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// openSession signs a user in and sets the cookie.
func (u *ui) openSession(w http.ResponseWriter, r *http.Request, user fleet.User) error {
	secret, expires := rand.Text(), u.Now().Add(sessionLifetime)
	err := u.proposeAs(r.Context(), "user:"+user.Name, fleet.SessionCreated{
		Session: fleet.Session{Hash: hashSecret(secret), UserID: user.ID, ExpiresAt: expires},
		Network: clientNetwork(r),
	})
	if err != nil {
		return err
	}
	setSessionCookie(w, r, secret, int(sessionLifetime.Seconds()))
	return nil
}

// closeSession signs the browser out.
func (u *ui) closeSession(w http.ResponseWriter, r *http.Request) error {
	if cookie, err := r.Cookie(sessionCookieOf(r)); err == nil {
		if who, known := u.authenticate(r); known {
			if err := u.proposeAs(r.Context(), who.Actor, fleet.SessionEnded{Hash: hashSecret(cookie.Value)}); err != nil {
				return err
			}
		}
	}
	setSessionCookie(w, r, "", -1)
	return nil
}

// sessionCookieOf is the name of the session's cookie on a request's connection.
func sessionCookieOf(r *http.Request) string {
	if r.TLS != nil {
		return hostSessionCookie
	}
	return sessionCookie
}

func setSessionCookie(w http.ResponseWriter, r *http.Request, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: sessionCookieOf(r), Value: value, Path: "/", MaxAge: maxAge,
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode,
	})
}
