package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
	"moult/updater/install"
)

// pathSelf is asked by `moult doctor` on the same host, with the host's own
// certificate: GET gives a nodeSelf. Nobody else gets an answer.
const pathSelf = "/node/self"

// nodeSelf is what a running node says of itself.
type nodeSelf struct {
	Version string      `json:"version"`
	Phase   string      `json:"phase"`
	Survey  mesh.Survey `json:"survey"`
}

// runningFile says in the data directory where the node that runs on it, or ran
// last, listens and what it updates.
const runningFile = "running.json"

type runningNode struct {
	Role      identity.Role `json:"role"`
	Peer      string        `json:"peer"` // node port, as others dial it
	Gossip    string        `json:"gossip"`
	HTTP      string        `json:"http,omitempty"`       // a server's UI
	Binary    string        `json:"binary,omitempty"`     // what updates replace
	InstallTo install.Place `json:"install_to,omitempty"` // or where they go
}

func (r runningNode) write(dataDir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(filepath.Join(dataDir, runningFile), append(text, '\n'), 0o600)
}

func readRunning(dataDir string) (r runningNode, err error) {
	path := filepath.Join(dataDir, runningFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return r, nil
}

// selfEndpoint answers this host, and nobody else.
func selfEndpoint(node *mesh.Node, self, version string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if nodeport.PeerFrom(r.Context()).HostID != self {
			http.Error(w, "only this host may ask", http.StatusForbidden)
			return
		}
		answer := nodeSelf{Version: version, Phase: string(node.Record().Phase), Survey: node.Survey(r.Context())}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the caller is gone if this errs
	}
}

// askSelf asks the node that runs on this host.
func askSelf(ctx context.Context, creds identity.Credentials, addr string) (nodeSelf, error) {
	client := clientOfSelf(creds)
	defer client.CloseIdleConnections()
	var self nodeSelf
	err := (&serverClient{http: client}).getJSON(ctx, addr, pathSelf, &self)
	return self, err
}

// clientOfSelf talks to this host, and to nobody else.
func clientOfSelf(creds identity.Credentials) *http.Client {
	return nodeport.Client(func() identity.Credentials { return creds }, func(id identity.Identity) error {
		if id.HostID != creds.HostID {
			return errors.New("the other side is another host")
		}
		return nil
	})
}
