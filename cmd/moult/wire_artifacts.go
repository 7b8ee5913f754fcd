package main

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
	me           self
	store        *artifact.Store
	served       *artifact.Server
	patches      *patch.Store
	patched      http.Handler  // serves them
	patchLimiter *rate.Limiter // of the patches that are served
	peers        artifactPeers
	client       *http.Client
	limiter      *rate.Limiter // of what is fetched, by whomever
}

func openArtifacts(o nodeOptions, me self, node *mesh.Node, current *identity.Current) (*artifactSide, error) {
	store, err := artifact.OpenStore(filepath.Join(o.data, "artifacts"), me.digest, me.executable)
	if err != nil {
		return nil, err
	}
	patches, err := patch.OpenStore(filepath.Join(o.data, "patches"))
	if err != nil {
		return nil, err
	}
	patchLimiter := artifact.NewLimiter(rateOf(o.serve.rate))
	return &artifactSide{
		me: me, patches: patches, patchLimiter: patchLimiter, patched: patch.Handler(patches, o.serve.streams, patchLimiter),
		store: store, served: artifact.Handler(store, o.serve.limits()),
		peers: artifactPeers{node, current.Get().HostID}, client: nodeport.Client(current.Get, anyMember),
		limiter: artifact.NewLimiter(rateOf(o.serve.pull)),
	}, nil
}

// anyMember lets any host of the cluster serve artifacts: the bytes are verified.
func anyMember(identity.Identity) error { return nil }

// puller gets artifacts for other hosts while this one is a relay. With prune it
// deletes what it got and keeps no longer; servers keep what is released.
func (a *artifactSide) puller(keys func() release.KeySet, prune bool, logger *slog.Logger) (*artifact.Puller, error) {
	return artifact.NewPuller(artifact.PullerConfig{
		HostID: a.peers.selfID, Store: a.store, HTTP: a.client, Limiter: a.limiter, Prune: prune,
		ReleaseKeys: keys,
		Candidates:  a.peers.holders, Relays: a.peers.relays, Active: a.peers.active,
		Logger: logger.With("component", "puller"),
	})
}

// nodeAPI is what members ask any node over HTTP on its node port.
func nodeAPI(node *mesh.Node, held *artifactSide, puller *artifact.Puller) *http.ServeMux {
	api := http.NewServeMux()
	api.Handle("/artifact/", held.served)
	api.Handle("/patch/", held.patched)
	api.Handle("POST /artifact/{digest}/pull", puller)
	api.Handle("GET "+pathNeighbours, membersEndpoint(node))
	api.Handle("GET "+pathSelf, selfEndpoint(node, held.peers.selfID, held.me.build.version))
	return api
}
