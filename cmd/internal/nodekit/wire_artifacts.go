package nodekit

import (
	"log/slog"
	"net/http"
	"path/filepath"

	"golang.org/x/time/rate"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
	"moult/updater/artifact"
	"moult/updater/patch"
	"moult/updater/release"
)

// artifactSide is what a node of either role has to keep, fetch and serve artifacts.
type artifactSide struct {
	me           Self
	Store        *artifact.Store
	Served       *artifact.Server
	Patches      *patch.Store
	patched      http.Handler  // serves them
	patchLimiter *rate.Limiter // of the patches that are served
	Peers        artifactPeers
	Client       *http.Client
	Limiter      *rate.Limiter // of what is fetched, by whomever
}

// OpenArtifacts opens the store of a node and what serves and fetches with it.
func OpenArtifacts(o NodeOptions, me Self, node *mesh.Node, current *identity.Current) (*artifactSide, error) {
	store, err := artifact.OpenStore(filepath.Join(o.Data, "artifacts"), me.Digest, me.Executable)
	if err != nil {
		return nil, err
	}
	patches, err := patch.OpenStore(filepath.Join(o.Data, "patches"))
	if err != nil {
		return nil, err
	}
	store.CountBesides(patches)
	store.SetLimit(int64(o.Serve.store))
	patchLimiter := artifact.NewLimiter(rateOf(o.Serve.rate))
	return &artifactSide{
		me: me, Patches: patches, patchLimiter: patchLimiter, patched: patch.Handler(patches, o.Serve.Streams, patchLimiter),
		Store: store, Served: artifact.Handler(store, o.Serve.limits()),
		Peers: artifactPeers{node, current.Get().HostID}, Client: nodeport.Client(current.Get, AnyMember),
		Limiter: artifact.NewLimiter(rateOf(o.Serve.Pull)),
	}, nil
}

// AnyMember lets any host of the cluster serve artifacts: the bytes are verified.
func AnyMember(identity.Identity) error { return nil }

// Puller gets artifacts for other hosts while this one is a relay. With prune it
// deletes what it got and keeps no longer; servers keep what is released.
func (a *artifactSide) Puller(keys func() release.KeySet, prune bool, logger *slog.Logger) (*artifact.Puller, error) {
	return artifact.NewPuller(artifact.PullerConfig{
		HostID: a.Peers.selfID, Store: a.Store, HTTP: a.Client, Limiter: a.Limiter, Prune: prune,
		ReleaseKeys: keys,
		Candidates:  a.Peers.Holders, Relays: a.Peers.relays, Active: a.Peers.active,
		Patched: patch.Fetcher(a.Store, a.Patches, a.Client, a.Limiter),
		Logger:  logger.With("component", "puller"),
	})
}

// NodeAPI is what members ask any node over HTTP on its node port.
func NodeAPI(node *mesh.Node, held *artifactSide, puller *artifact.Puller) *http.ServeMux {
	api := http.NewServeMux()
	api.Handle("/artifact/", held.Served)
	api.Handle("/patch/", held.patched)
	api.Handle("POST /artifact/{digest}/pull", puller)
	api.Handle("GET "+PathNeighbours, membersEndpoint(node))
	api.Handle("GET "+PathSelf, SelfEndpoint(node, held.Peers.selfID, held.me.Build.Version))
	return api
}
