package webui

import (
	"crypto/rand"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/google/uuid"

	"moult/consensus/fleet"
)

// apiTokenPrefix makes API tokens easy to find where they were leaked.
const apiTokenPrefix = "moult_"

// userJSON is a user as the API shows it.
type userJSON struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Role      fleet.UserRole `json:"role"`
	CreatedAt time.Time      `json:"created_at"`
	// MustChange: somebody else chose the password, and the user has not signed in
	// and chosen another one yet.
	MustChange bool `json:"must_change_password"`
}

func showUser(u fleet.User) userJSON {
	return userJSON{ID: u.ID, Name: u.Name, Role: u.Role, CreatedAt: u.CreatedAt, MustChange: u.MustChangePassword}
}

func (u *ui) listUsers(w http.ResponseWriter, _ *http.Request) error {
	all := []userJSON{}
	for _, user := range u.View().Users() {
		all = append(all, showUser(user))
	}
	return ok(w, map[string]any{"users": all})
}

func validRole(r fleet.UserRole) error {
	if !r.Includes(fleet.Viewer) {
		return badRequest("role: give admin, operator or viewer")
	}
	return nil
}

// hashNewPassword waits for a slot: hashing is made to be expensive.
func (u *ui) hashNewPassword(r *http.Request, password string) (string, error) {
	if err := u.logins.awaitKDF(r.Context()); err != nil {
		return "", err
	}
	defer u.logins.kdf.give()
	hash, err := HashPassword(password)
	if err != nil {
		return "", badRequest("password: %v", err)
	}
	return hash, nil
}

func (u *ui) createUser(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name     string         `json:"name"`
		Role     fleet.UserRole `json:"role"`
		Password string         `json:"password"`
		// MustChange: the password is only for the first sign-in.
		MustChange bool `json:"must_change_password"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := validRole(in.Role); err != nil {
		return err
	}
	hash, err := u.hashNewPassword(r, in.Password)
	if err != nil {
		return err
	}
	user := fleet.User{ID: uuid.NewString(), Name: in.Name, Role: in.Role, PasswordHash: hash, MustChangePassword: in.MustChange}
	if err := u.propose(r, fleet.UserCreated{User: user}); err != nil {
		return err
	}
	user, _ = u.View().User(user.ID)
	return ok(w, showUser(user))
}

// changeUser sets the role or the password; either ends the user's sessions.
func (u *ui) changeUser(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Role     fleet.UserRole `json:"role"`
		Password string         `json:"password"`
		// MustChange: the password is only for the next sign-in.
		MustChange bool `json:"must_change_password"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	change := fleet.UserChanged{UserID: chi.URLParam(r, "id"), Role: in.Role}
	if in.Role != "" {
		if err := validRole(in.Role); err != nil {
			return err
		}
	}
	if in.Password != "" {
		var err error
		if change.PasswordHash, err = u.hashNewPassword(r, in.Password); err != nil {
			return err
		}
		change.MustChange = in.MustChange
	} else if in.MustChange {
		return badRequest("must_change_password: it goes with a password; give one")
	}
	if err := u.propose(r, change); err != nil {
		return err
	}
	user, _ := u.View().User(change.UserID)
	return ok(w, showUser(user))
}

func (u *ui) deleteUser(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	if err := u.propose(r, fleet.UserDeleted{UserID: chi.URLParam(r, "id")}); err != nil {
		return err
	}
	return done(w)
}

// tokenJSON is an API token as the API shows it: never its secret.
type tokenJSON struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Role      fleet.UserRole `json:"role"`
	CreatedAt time.Time      `json:"created_at"`
	CreatedBy string         `json:"created_by"`
	ExpiresAt *time.Time     `json:"expires_at"`
}

func showToken(t fleet.APIToken) tokenJSON {
	return tokenJSON{ID: t.ID, Name: t.Name, Role: t.Role, CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, ExpiresAt: t.ExpiresAt}
}

// newTokenJSON is the one answer that holds the secret.
type newTokenJSON struct {
	tokenJSON
	Token string `json:"token"`
}

func (u *ui) listTokens(w http.ResponseWriter, _ *http.Request) error {
	all := []tokenJSON{}
	for _, t := range u.View().APITokens() {
		all = append(all, showToken(t))
	}
	return ok(w, map[string]any{"tokens": all})
}

func (u *ui) createToken(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name string         `json:"name"`
		Role fleet.UserRole `json:"role"`
		TTL  string         `json:"ttl"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := validRole(in.Role); err != nil {
		return err
	}
	secret := apiTokenPrefix + rand.Text()
	t := fleet.APIToken{ID: uuid.NewString(), Name: in.Name, Role: in.Role, Hash: hashSecret(secret)}
	if in.TTL != "" {
		ttl, err := parseTTL(in.TTL, 0)
		if err != nil {
			return err
		}
		expires := u.Now().Add(ttl).UTC()
		t.ExpiresAt = &expires
	}
	if err := u.propose(r, fleet.APITokenCreated{Token: t}); err != nil {
		return err
	}
	t, _ = u.View().APITokenByHash(t.Hash)
	return ok(w, newTokenJSON{tokenJSON: showToken(t), Token: secret})
}

func (u *ui) revokeToken(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	if err := u.propose(r, fleet.APITokenRevoked{TokenID: chi.URLParam(r, "id")}); err != nil {
		return err
	}
	return done(w)
}

// parseTTL reads how long something is to live; limit 0 is none.
func parseTTL(text string, limit time.Duration) (time.Duration, error) {
	ttl, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, badRequest("ttl: %s is not a duration such as 15m or 24h", quoted(text))
	case ttl <= 0:
		return 0, badRequest("ttl: must be positive")
	case limit > 0 && ttl > limit:
		return 0, badRequest("ttl: give at most %s", limit)
	}
	return ttl, nil
}
