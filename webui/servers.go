package webui

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// serversTimeout bounds a change of the Raft group: a new server takes over, or
// what was removed is committed, within seconds or not at all.
const serversTimeout = 15 * time.Second

func (u *ui) listServers(w http.ResponseWriter, r *http.Request) error {
	return ok(w, map[string]any{"servers": list(u.Servers.Servers(r.Context()))})
}

// removeServer takes a server out of the Raft group first and out of the state
// second, which is also what the audit shows. Repeating it finishes what an
// earlier call began.
func (u *ui) removeServer(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	id := chi.URLParam(r, "id")
	host, enrolled := u.View().Host(id)
	enrolled = enrolled && host.Role == fleet.RoleServer
	member := slices.ContainsFunc(u.Servers.Servers(r.Context()), func(s ServerStatus) bool { return s.ID == id })
	if !member && !enrolled {
		return refuse(codeServerNotFound, "no server has the id "+quoted(id)+"; GET /api/servers lists them")
	}
	if member {
		ctx, cancel := context.WithTimeout(r.Context(), serversTimeout)
		defer cancel()
		if err := u.Servers.RemoveServer(ctx, id); err != nil {
			return unavailableUnlessRefused(err)
		}
	}
	if enrolled {
		if err := u.propose(r, fleet.HostRemoved{HostID: id}); err != nil {
			return err
		}
	}
	u.Logger.Info("server removed", "host", id, "actor", callerOf(r).Actor)
	return done(w)
}

func (u *ui) transferLeadership(w http.ResponseWriter, r *http.Request) error {
	if err := noBody(w, r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), serversTimeout)
	defer cancel()
	if err := u.Servers.TransferLeadership(ctx); err != nil {
		return unavailableUnlessRefused(err)
	}
	u.Logger.Info("leadership transferred", "actor", callerOf(r).Actor)
	return done(w)
}
