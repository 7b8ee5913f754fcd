package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// The servers' own protocol on the node port (HTTP over mutual TLS). All paths
// but the artifacts' and pathMembers take role=server.
const (
	pathPropose   = "/node/propose" // POST: a forwarded proposal, to the leader
	pathAddServer = "/node/servers" // POST: add me to the Raft configuration

	pathRelease = "/node/releases" // POST: get a release's bytes from the sender
)

// Limits of the node protocol.
const (
	nodeCallTimeout  = 15 * time.Second
	minStatusTimeout = 700 * time.Millisecond // more with a longer heartbeat
)

// addServerRequest asks to become a member of the Raft group.
type addServerRequest struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

// requireServer lets only servers' certificates through.
func requireServer(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if nodeport.PeerFrom(r.Context()).Role != identity.RoleServer {
			http.Error(w, "only servers may call this", http.StatusForbidden)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, nodekit.MaxNodeBody)
		next(w, r)
	}
}

// jsonEndpoint decodes In, calls f, and answers Out or an error as text.
func jsonEndpoint[In, Out any](f func(ctx context.Context, from identity.Identity, in In) (Out, error)) http.HandlerFunc {
	return requireServer(jsonBody(f))
}

// jsonBody is jsonEndpoint for whoever may call.
func jsonBody[In, Out any](f func(ctx context.Context, from identity.Identity, in In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		if r.Method != http.MethodGet {
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		out, err := f(r.Context(), nodeport.PeerFrom(r.Context()), in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the caller is gone if this errs
	}
}

// bytesEndpoint is the same for a body that is passed on as it is.
func bytesEndpoint(f func(ctx context.Context, body []byte) ([]byte, error)) http.HandlerFunc {
	return requireServer(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		out, err := f(r.Context(), body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Write(out)
	})
}

func newServerClient(creds func() identity.Credentials, statusTimeout time.Duration) *nodekit.ServerClient {
	return &nodekit.ServerClient{StatusTimeout: statusTimeout, Http: nodeport.Client(creds, func(id identity.Identity) error {
		if id.Role != identity.RoleServer {
			return errors.New("the other side is not a server")
		}
		return nil
	})}
}

// addServerAPI adds what members ask servers only.
func addServerAPI(api *http.ServeMux, raft *consensus.Node, members *membership, publisher *publisher, desk *checkInDesk) {
	api.Handle("POST "+pathCheckIns, jsonEndpoint(desk.heard))
	api.Handle("POST "+pathPropose, bytesEndpoint(raft.ServeForwarded))
	api.Handle("POST "+pathAddServer, jsonEndpoint(members.add))
	api.Handle("GET "+nodekit.PathStatus, jsonEndpoint(members.status))
	api.Handle("GET "+nodekit.PathState, jsonEndpoint(members.state))
	knowledge := memberKnowledge{raft}
	api.Handle("GET "+nodekit.PathMembers, jsonEndpoint(knowledge.get))
	api.Handle("POST "+nodekit.PathMembers, jsonEndpoint(knowledge.hear))
	api.Handle("POST "+pathRelease, jsonEndpoint(publisher.takeOffer))
}
