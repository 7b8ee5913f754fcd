package webui

import (
	"context"
	"errors"
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
	servers := u.Servers.Servers(r.Context())
	for i := range servers {
		servers[i].Problems = list(servers[i].Problems)
	}
	return ok(w, map[string]any{"servers": list(servers)})
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
		ctx, cancel := context.WithTimeout(r.Context(), proposeTimeout)
		defer cancel()
		change, err := u.denial(host)
		if err != nil {
			return err
		}
		result, err := u.Proposer.Propose(ctx, callerOf(r).Actor, change)
		if tooNew(err) {
			result, err = u.Proposer.Propose(ctx, callerOf(r).Actor, fleet.HostRemoved{HostID: id})
		}
		// A server that removes itself is told nothing any more: that the change was
		// applied is all it can know.
		if applied := result.Index != 0 && result.Err == nil; err != nil && !applied {
			return unavailableUnlessRefused(err)
		}
	}
	u.Logger.Info("server removed", "host", id, "actor", callerOf(r).Actor)
	return done(w)
}

// demoteServer writes down that a server shall not vote, then takes its vote: in
// between the leader would make it a voter again.
func (u *ui) demoteServer(w http.ResponseWriter, r *http.Request) error {
	id, err := u.memberOf(w, r)
	if err != nil {
		return err
	}
	if err := u.propose(r, fleet.ServerStandbyChanged{HostID: id, Standby: true}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), serversTimeout)
	defer cancel()
	err = u.Servers.DemoteServer(ctx, id)
	var refused *fleet.Error
	if errors.As(err, &refused) {
		return errors.Join(refused, u.propose(r, fleet.ServerStandbyChanged{HostID: id}))
	}
	if err != nil {
		return unavailableUnlessRefused(err)
	}
	u.Logger.Info("server demoted", "host", id, "actor", callerOf(r).Actor)
	return done(w)
}

// promoteServer lets a server vote again; the leader makes it a voter as soon as it
// has caught up.
func (u *ui) promoteServer(w http.ResponseWriter, r *http.Request) error {
	id, err := u.memberOf(w, r)
	if err != nil {
		return err
	}
	if err := u.propose(r, fleet.ServerStandbyChanged{HostID: id}); err != nil {
		return err
	}
	return done(w)
}

// memberOf returns the id of the server that a request without a body is about.
func (u *ui) memberOf(w http.ResponseWriter, r *http.Request) (string, error) {
	if err := noBody(w, r); err != nil {
		return "", err
	}
	id := chi.URLParam(r, "id")
	if !slices.ContainsFunc(u.Servers.Servers(r.Context()), func(s ServerStatus) bool { return s.ID == id }) {
		return "", refuse(codeServerNotFound, "no server has the id "+quoted(id)+"; GET /api/servers lists them")
	}
	return id, nil
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
