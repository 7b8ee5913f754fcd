package nodekit

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
	"moult/updater/install"
)

// PathSelf is asked by `moult doctor` on the same host, with the host's own
// certificate: GET gives a nodeSelf. Nobody else gets an answer.
const PathSelf = "/node/self"

// NodeSelf is what a running node says of itself.
type NodeSelf struct {
	Version string      `json:"version"`
	Phase   string      `json:"phase"`
	Survey  mesh.Survey `json:"survey"`

	Goroutines int    `json:"goroutines"`
	HeapBytes  uint64 `json:"heap_bytes"` // that are in use or wait to be collected
}

// RunningFile says in the data directory where the node that runs on it, or ran
// last, listens and what it updates.
const RunningFile = "running.json"

// RunningNode is what a node leaves in its data directory for moult doctor.
type RunningNode struct {
	Role      identity.Role `json:"role"`
	Peer      string        `json:"peer"` // node port, as others dial it
	Gossip    string        `json:"gossip"`
	HTTP      string        `json:"http,omitempty"`       // a server's UI
	Binary    string        `json:"binary,omitempty"`     // what updates replace
	InstallTo install.Place `json:"install_to,omitempty"` // or where they go
}

func (r RunningNode) Write(dataDir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return WriteFileAtomic(filepath.Join(dataDir, RunningFile), append(text, '\n'), 0o600)
}

// ReadRunning reads what the node of a data directory left there.
func ReadRunning(dataDir string) (r RunningNode, err error) {
	path := filepath.Join(dataDir, RunningFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return r, nil
}

// SelfEndpoint answers this host, and nobody else.
func SelfEndpoint(node *mesh.Node, self, version string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if nodeport.PeerFrom(r.Context()).HostID != self {
			http.Error(w, "only this host may ask", http.StatusForbidden)
			return
		}
		answer := NodeSelf{
			Version: version, Phase: string(node.Record().Phase), Survey: node.Survey(r.Context()),
			Goroutines: runtime.NumGoroutine(), HeapBytes: heapBytes(),
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the caller is gone if this errs
	}
}

// heapBytes is what the heap's objects take.
func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// ClientOfSelf talks to this host, and to nobody else.
func ClientOfSelf(creds identity.Credentials) *http.Client {
	return nodeport.Client(func() identity.Credentials { return creds }, func(id identity.Identity) error {
		if id.HostID != creds.HostID {
			return errors.New("the other side is another host")
		}
		return nil
	})
}
