package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"moult/consensus"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
	"moult/webui"
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
		r.Body = http.MaxBytesReader(w, r.Body, maxNodeBody)
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

func newServerClient(creds func() identity.Credentials, statusTimeout time.Duration) *serverClient {
	return &serverClient{statusTimeout: statusTimeout, http: nodeport.Client(creds, func(id identity.Identity) error {
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
	api.Handle("GET "+pathStatus, jsonEndpoint(members.status))
	api.Handle("GET "+pathState, jsonEndpoint(members.state))
	knowledge := memberKnowledge{raft}
	api.Handle("GET "+pathMembers, jsonEndpoint(knowledge.get))
	api.Handle("POST "+pathMembers, jsonEndpoint(knowledge.hear))
	api.Handle("POST "+pathRelease, jsonEndpoint(publisher.takeOffer))
}

// What servers ask of each other on the node port, and how much they read of it.
const (
	pathStatus  = "/node/status"  // GET: nodeStatus
	pathState   = "/node/state"   // GET: nodeState
	pathMembers = "/node/members" // GET: the Raft configuration as known here; POST: as the sender knows it
	maxNodeBody = 4 << 20         // bytes
)

// nodeStatus is what a server tells the others about itself.
type nodeStatus struct {
	Version      string `json:"version"`
	AppliedIndex uint64 `json:"applied_index"`
	Ready        bool   `json:"ready"`
	// Now is what its clock says; missing: it does not tell.
	Now time.Time `json:"now,omitzero"`
	// Problems are missing where an older server answers.
	Problems []webui.Problem `json:"problems,omitempty"`
	// Kinds are what of fleet.Known it knows; missing: fleet.FirstKinds.
	Kinds []string `json:"kinds,omitempty"`
	// ForgeryCalm is for how long it has refused no more forged gossip than happens in a
	// healthy mesh; missing: it does, or does not tell.
	ForgeryCalm time.Duration `json:"forgery_calm,omitempty"`
}

// serverClient calls the other servers' node ports.
type serverClient struct {
	http          *http.Client
	statusTimeout time.Duration
}

// withoutURL is why a request failed, without the URL that it was for.
func withoutURL(err error) error {
	if request, ok := errors.AsType[*url.Error](err); ok {
		return request.Err
	}
	return err
}

// Post sends body to a server's node port and returns the answer.
func (c *serverClient) Post(ctx context.Context, addr, path string, body []byte) ([]byte, error) {
	return c.Send(ctx, http.MethodPost, addr, path, body)
}

// Send asks a server's node port with any method and returns the answer.
func (c *serverClient) Send(ctx context.Context, method, addr, path string, body []byte) ([]byte, error) {
	out, _, err := c.exchange(ctx, method, addr, path, body)
	return out, err
}

// exchange is send that tells who answered.
func (c *serverClient) exchange(ctx context.Context, method, addr, path string, body []byte) (out []byte, from identity.Identity, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, from, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, from, err
	}
	defer resp.Body.Close()
	if resp.TLS == nil {
		return nil, from, fmt.Errorf("%s%s answers without TLS", addr, path)
	}
	if from, err = identity.PeerIdentity(*resp.TLS); err != nil {
		return nil, from, err
	}
	out, err = io.ReadAll(io.LimitReader(resp.Body, maxNodeBody))
	if err != nil {
		return nil, from, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, from, fmt.Errorf("%s%s answers %s: %s", addr, path, resp.Status, bytes.TrimSpace(out))
	}
	return out, from, nil
}

// PostJSON is post with JSON on both sides; out may be nil.
func (c *serverClient) PostJSON(ctx context.Context, addr, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := c.Post(ctx, addr, path, body)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

// GetJSON asks for a path and decodes the answer.
func (c *serverClient) GetJSON(ctx context.Context, addr, path string, out any) error {
	answer, err := c.Send(ctx, http.MethodGet, addr, path, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

// Status asks a server how it is.
func (c *serverClient) Status(ctx context.Context, addr string) (nodeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, c.statusTimeout)
	defer cancel()
	var st nodeStatus
	err := c.GetJSON(ctx, addr, pathStatus, &st)
	return st, err
}
