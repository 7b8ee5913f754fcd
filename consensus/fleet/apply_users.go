package fleet

import "strings"

// checkUser refuses a user that is not complete.
func checkUser(u User) *Error {
	switch {
	case !validID(u.ID):
		return refuse(CodeBadRequest, "user.id %q: %s", u.ID, nameRule)
	case !ValidName(u.Name):
		return refuse(CodeBadRequest, "name %q: %s", u.Name, nameRule)
	case len(u.PasswordHash) > MaxPasswordHashBytes:
		return refuse(CodeBadRequest, "password_hash is %d bytes; give at most %d", len(u.PasswordHash), MaxPasswordHashBytes)
	}
	return nil
}

// checkAPIToken refuses an API token that is not complete.
func checkAPIToken(k APIToken) *Error {
	switch {
	case !validID(k.ID):
		return refuse(CodeBadRequest, "token.id %q: %s", k.ID, nameRule)
	case !validID(k.Hash):
		return refuse(CodeBadRequest, "token.hash: give the sha256 of the secret in hex")
	case !ValidName(k.Name):
		return refuse(CodeBadRequest, "name %q: %s", k.Name, nameRule)
	}
	return nil
}

func applyUserCreated(t *tx, c UserCreated) *Error {
	u := c.User
	if refused := checkUser(u); refused != nil {
		return refused
	}
	if !validRole(u.Role) {
		return refuse(CodeBadRequest, "role %q: %s", u.Role, roleRule)
	}
	if u.PasswordHash == "" {
		return refuse(CodeBadRequest, "password is empty; choose one")
	}
	if _, exists := t.view().UserByName(u.Name); exists {
		return refuse(CodeUserExists, "a user called %q exists already; choose another name", u.Name)
	}
	if _, exists := t.view().User(u.ID); exists {
		return refuse(CodeUserExists, "a user with the id %q exists already; give the new one another id", u.ID)
	}
	if users := len(t.view().Users()); users >= t.bounds.users {
		return refuse(CodeLimitReached, "there are %d users, and no more fit; delete one", users)
	}
	u.CreatedAt, u.KnownFrom = t.at, nil
	t.put(tableUsers, u)
	t.touch("users")
	t.audit("user "+u.Name, string(u.Role))
	return nil
}

// lastAdmin tells whether u is the only admin.
func (t *tx) lastAdmin(u User) bool {
	if u.Role != Admin {
		return false
	}
	for _, other := range t.view().Users() {
		if other.ID != u.ID && other.Role == Admin {
			return false
		}
	}
	return true
}

func (t *tx) user(id string) (User, *Error) {
	u, ok := t.view().User(id)
	if !ok {
		return u, refuse(CodeUserNotFound, "no user has the id %q; `moult user list` shows them", id)
	}
	return u, nil
}

func (t *tx) endSessions(userID string) {
	_, err := t.DeleteAll(tableSessions, "user", userID)
	must(err)
}

func applyUserChanged(t *tx, c UserChanged) *Error {
	u, refused := t.user(c.UserID)
	if refused != nil {
		return refused
	}
	if c.Role == "" && c.PasswordHash == "" {
		return refuse(CodeBadRequest, "role and password are empty; give at least one of them")
	}
	if len(c.PasswordHash) > MaxPasswordHashBytes {
		return refuse(CodeBadRequest, "password_hash is %d bytes; give at most %d", len(c.PasswordHash), MaxPasswordHashBytes)
	}
	var what []string
	if c.Role != "" {
		if !validRole(c.Role) {
			return refuse(CodeBadRequest, "role %q: %s", c.Role, roleRule)
		}
		if c.Role != Admin && t.lastAdmin(u) {
			return refuse(CodeLastAdmin, "%s is the last admin; make another one first", u.Name)
		}
		u.Role, what = c.Role, append(what, "role "+string(c.Role))
	}
	if c.PasswordHash != "" {
		own := t.actor == "user:"+u.Name
		u.PasswordHash, u.KnownFrom = c.PasswordHash, nil
		u.MustChangePassword = c.MustChange || u.MustChangePassword && !own
		what = append(what, passwordSet(u))
	}
	t.put(tableUsers, u)
	t.endSessions(u.ID)
	t.touch("users")
	t.audit("user "+u.Name, strings.Join(what, ", "))
	return nil
}

// passwordSet tells the audit of a password that was set.
func passwordSet(u User) string {
	if u.MustChangePassword {
		return "password, to be changed at first use"
	}
	return "password"
}

func applyUserDeleted(t *tx, c UserDeleted) *Error {
	u, refused := t.user(c.UserID)
	if refused != nil {
		return refused
	}
	if t.lastAdmin(u) {
		return refuse(CodeLastAdmin, "%s is the last admin; make another one first", u.Name)
	}
	t.remove(tableUsers, u)
	t.endSessions(u.ID)
	t.touch("users")
	t.audit("user "+u.Name, "")
	return nil
}

func applyAPITokenCreated(t *tx, c APITokenCreated) *Error {
	k := c.Token
	if refused := checkAPIToken(k); refused != nil {
		return refused
	}
	if !validRole(k.Role) {
		return refuse(CodeBadRequest, "role %q: %s", k.Role, roleRule)
	}
	if k.ExpiresAt != nil {
		at := k.ExpiresAt.UTC()
		if !at.After(t.at) || !validTime(at) {
			return refuse(CodeBadRequest, "expires_at is not in the future, or after the year %d; give another time, or none", maxYear)
		}
		k.ExpiresAt = &at
	}
	_, sameID := first[APIToken](t.Txn, tableAPITokens, "id", k.ID)
	if _, sameHash := t.view().APITokenByHash(k.Hash); sameID || sameHash {
		return refuse(CodeConflict, "this API token exists already; make another one")
	}
	if refused := t.roomForAPIToken(); refused != nil {
		return refused
	}
	k.CreatedAt, k.CreatedBy = t.at, t.actor
	t.put(tableAPITokens, k)
	t.touch("tokens")
	t.audit("API token "+k.Name, string(k.Role))
	return nil
}

func applyAPITokenRevoked(t *tx, c APITokenRevoked) *Error {
	k, ok := first[APIToken](t.Txn, tableAPITokens, "id", c.TokenID)
	if !ok {
		return refuse(CodeAPITokenNotFound, "no API token has the id %q; the token page lists them", c.TokenID)
	}
	t.remove(tableAPITokens, k)
	t.touch("tokens")
	t.audit("API token "+k.Name, "")
	return nil
}

func applySessionCreated(t *tx, c SessionCreated) *Error {
	u, refused := t.user(c.Session.UserID)
	if refused != nil {
		return refused
	}
	if c.Session.ExpiresAt = c.Session.ExpiresAt.UTC(); !validID(c.Session.Hash) || !c.Session.ExpiresAt.After(t.at) || !validTime(c.Session.ExpiresAt) {
		return refuse(CodeBadRequest, "session.hash or session.expires_at is not valid; sign in again")
	}
	if _, exists := t.view().Session(c.Session.Hash); exists {
		return refuse(CodeConflict, "this session exists already; sign in again")
	}
	if c.Network != "" && !validNetwork(c.Network) {
		return refuse(CodeBadRequest, "network: %s; sign in again", networkRule)
	}
	t.roomForSession(u.ID)
	c.Session.CreatedAt = t.at
	t.put(tableSessions, c.Session)
	if c.Network != "" {
		t.signedInFrom(u, c.Network)
	}
	t.audit("user "+u.Name, "signed in")
	return nil
}

func applySessionEnded(t *tx, c SessionEnded) *Error {
	s, ok := first[Session](t.Txn, tableSessions, "id", c.Hash)
	if !ok {
		t.unaudited() // ended already
		return nil
	}
	t.remove(tableSessions, s)
	if u, ok := t.view().User(s.UserID); ok {
		t.audit("user "+u.Name, "signed out")
	}
	return nil
}

func applySessionsEnded(t *tx, c SessionsEnded) *Error {
	u, refused := t.user(c.UserID)
	if refused != nil {
		return refused
	}
	t.endSessions(u.ID)
	t.audit("user "+u.Name, "signed out everywhere")
	return nil
}
