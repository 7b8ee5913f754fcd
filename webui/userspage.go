package webui

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"moult/consensus/fleet"
)

var usersPageKind = pageKind{name: "users", title: "Users and tokens", topics: "users tokens"}

// usersView is what the page of users and tokens shows.
type usersView struct {
	shell
	Account bool // whoever looks is a user, not an API token
	Users   []userJSON
	Tokens  []tokenRow
	Roles   []fleet.UserRole
}

// tokenRow is an API token and whether it is of use still.
type tokenRow struct {
	tokenJSON
	Expired bool
}

func (u *ui) usersPage(w http.ResponseWriter, r *http.Request) error {
	state := u.View()
	v := &usersView{Roles: []fleet.UserRole{fleet.Viewer, fleet.Operator, fleet.Admin}}
	v.Account = strings.HasPrefix(callerOf(r).Actor, "user:")
	for _, user := range state.Users() {
		v.Users = append(v.Users, showUser(user))
	}
	for _, t := range state.APITokens() {
		v.Tokens = append(v.Tokens, tokenRow{showToken(t), t.ExpiresAt != nil && !u.Now().Before(*t.ExpiresAt)})
	}
	slices.SortStableFunc(v.Tokens, func(a, b tokenRow) int { return cmp.Compare(a.Name, b.Name) })
	return u.show(w, r, usersPageKind, v)
}
