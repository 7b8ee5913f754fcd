package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/artifact"
	"moult/updater/release"
	"moult/webui"
)

// replicateTimeout bounds how long another server may take to get a release's
// bytes before an upload stops waiting for it.
const replicateTimeout = 10 * time.Minute

// syncInterval is how often a server looks for release bytes that it lacks.
const syncInterval = 5 * time.Second

// publisher takes uploads: bytes into this server's store, then to a majority
// of the servers, then the release into the replicated state.
type publisher struct {
	raft    *consensus.Node
	store   *artifact.Store
	servers *serverClient
	anyone  *http.Client // for bytes: agents hold them too
	self    string       // this server's id
	peer    string       // this server's node port, as others reach it
	limiter *rate.Limiter
	logger  *slog.Logger
}

// releaseOffer asks another server to get a release's bytes from Peer.
type releaseOffer struct {
	Manifest  []byte `json:"manifest"`
	Signature []byte `json:"signature"`
	Peer      string `json:"peer"`
}

func (p *publisher) releaseKeys() release.KeySet {
	c, _ := p.raft.State().View().Cluster()
	return webui.ReleaseKeys(c)
}

// Begin checks the manifest before any artifact is read.
func (p *publisher) Begin(_ context.Context, manifest, signature []byte) (webui.Upload, error) {
	m, err := release.Verify(p.releaseKeys(), manifest, signature)
	if err != nil {
		return nil, &fleet.Error{Code: "bad_signature", Message: fmt.Sprintf("the manifest is refused: %v; sign it with a pinned release key: moult release create --key FILE", err)}
	}
	if m.Expires != nil && !m.Expires.After(time.Now()) {
		return nil, &fleet.Error{Code: fleet.CodeBadRequest, Message: fmt.Sprintf("manifest: it expired at %s, so no host would take the release; sign a manifest that is still good and publish that", m.Expires.Format(time.RFC3339))}
	}
	if _, ok := p.raft.State().View().Release(m.Version); ok {
		return nil, &fleet.Error{Code: fleet.CodeReleaseExists, Message: fmt.Sprintf("release %s exists already; give the new one another version", m.Version)}
	}
	return &upload{p: p, manifest: manifest, signature: signature, m: m, have: map[string]bool{}}, nil
}

type upload struct {
	p                   *publisher
	manifest, signature []byte
	m                   release.Manifest
	have                map[string]bool // by sha256
}

// Artifact takes one artifact; the manifest tells which one it is by its digest.
func (u *upload) Artifact(_ context.Context, name string, r io.Reader) error {
	digest, err := u.p.store.Import(r, release.MaxArtifactBytes, u.wanted)
	if errors.Is(err, artifact.ErrNotWanted) {
		return &fleet.Error{Code: "digest_mismatch", Message: fmt.Sprintf("artifact %s is none of those that the manifest names; create the release again from these files", name)}
	}
	if err != nil {
		return fmt.Errorf("store artifact %s: %w", name, err)
	}
	for _, a := range u.m.Artifacts {
		if a.SHA256 != digest {
			continue
		}
		if err := u.p.store.CheckChunks(digest, a.Chunks()); errors.Is(err, release.ErrChunkList) {
			return &fleet.Error{Code: "digest_mismatch", Message: fmt.Sprintf("artifact %s has other chunks than the manifest's chunk_list says; create the release again from this file", name)}
		} else if err != nil {
			return fmt.Errorf("read artifact %s: %w", name, err)
		}
	}
	u.have[digest] = true
	return nil
}

// wanted tells whether the manifest names bytes of this digest and length.
func (u *upload) wanted(digest string, size int64) bool {
	for _, a := range u.m.Artifacts {
		if a.SHA256 == digest && a.Size == size {
			return true
		}
	}
	return false
}

// Commit waits until a majority of the servers hold the bytes, then publishes.
func (u *upload) Commit(ctx context.Context, actor string) error {
	for _, a := range u.m.Artifacts {
		if !u.have[a.SHA256] {
			return &fleet.Error{Code: fleet.CodeBadRequest, Message: fmt.Sprintf("the artifact for %s/%s is missing; upload every artifact that the manifest names", a.OS, a.Arch)}
		}
	}
	if err := u.p.replicate(ctx, u.manifest, u.signature); err != nil {
		return err
	}
	rel := fleet.Release{Version: u.m.Version, Number: u.m.Number, Manifest: u.manifest, Signature: u.signature, PublishedBy: actor}
	for _, a := range u.m.Artifacts {
		rel.Artifacts = append(rel.Artifacts, fleet.Artifact{OS: a.OS, Arch: a.Arch, Size: a.Size, SHA256: a.SHA256})
	}
	_, err := u.p.raft.Propose(ctx, actor, fleet.ReleasePublished{Release: rel})
	return err
}

// Abort leaves what arrived to dropUnoffered: the next attempt may want it.
func (u *upload) Abort() {}

// replicate returns once a majority of the voters, this one included, holds
// the release's bytes on disk.
func (p *publisher) replicate(ctx context.Context, manifest, signature []byte) error {
	ctx, cancel := context.WithTimeout(ctx, replicateTimeout)
	defer cancel()
	servers := p.raft.Servers()
	voters, holding := 0, 0
	answers := make(chan error, len(servers))
	asked := 0
	for _, s := range servers {
		if !s.Voter {
			continue
		}
		voters++
		if s.ID == p.self {
			holding++
			continue
		}
		asked++
		go func() {
			err := p.servers.PostJSON(ctx, s.Address, pathRelease, releaseOffer{Manifest: manifest, Signature: signature, Peer: p.peer}, nil)
			if err != nil {
				err = fmt.Errorf("server %s: %w", s.Address, err)
			}
			answers <- err
		}()
	}
	var errs []error
	for holding < voters/2+1 && asked > 0 {
		asked--
		if err := <-answers; err != nil {
			errs = append(errs, err)
		} else {
			holding++
		}
	}
	if holding < voters/2+1 {
		return &fleet.Error{Code: "no_majority", Message: fmt.Sprintf("only %d of %d servers hold the release, a majority must; look at `moult servers` and publish again (%v)", holding, voters, errors.Join(errs...))}
	}
	return nil
}

// takeOffer gets an offered release's bytes, on another server.
func (p *publisher) takeOffer(ctx context.Context, from identity.Identity, offer releaseOffer) (struct{}, error) {
	m, err := release.Verify(p.releaseKeys(), offer.Manifest, offer.Signature)
	if err != nil {
		return struct{}{}, err
	}
	peer := artifact.Peer{HostID: from.HostID, Name: from.Name, Role: string(from.Role), Addr: offer.Peer}
	for _, a := range m.Artifacts {
		if err := p.fetch(ctx, a, func() []artifact.Peer { return []artifact.Peer{peer} }); err != nil {
			return struct{}{}, err
		}
	}
	return struct{}{}, nil
}

func (p *publisher) fetch(ctx context.Context, a release.Artifact, candidates func() []artifact.Peer) error {
	if p.store.Has(a.SHA256) {
		return nil
	}
	_, err := artifact.Fetch(ctx, artifact.FetchRequest{
		Store: p.store, Digest: a.SHA256, Size: a.Size, Chunks: a.Chunks(), Candidates: candidates, HTTP: p.anyone, Limiter: p.limiter,
	})
	return err
}

// dropUnoffered deletes the bytes that no release offers.
func (p *publisher) dropUnoffered(releases []fleet.Release) error {
	digests, err := p.store.List()
	if err != nil {
		return err
	}
	held := map[string]time.Time{}
	for _, d := range digests {
		if st, err := os.Stat(p.store.Path(d)); err == nil { // else it has gone meanwhile
			held[d] = st.ModTime()
		}
	}
	var errs []error
	for _, d := range unoffered(releases, held, time.Now()) {
		errs = append(errs, p.store.Remove(d))
	}
	return errors.Join(errs...)
}

// strayAge is how long bytes are kept that no release names: they may be of an
// upload that is under way, or be repeated.
const strayAge = 24 * time.Hour

// unoffered returns which of the artifacts held since some time are of no more
// use: those of withdrawn releases, and those that no release came to name.
func unoffered(releases []fleet.Release, held map[string]time.Time, now time.Time) (digests []string) {
	offered, named := map[string]bool{}, map[string]bool{}
	for _, r := range releases {
		for _, a := range r.Artifacts {
			named[a.SHA256] = true
			offered[a.SHA256] = offered[a.SHA256] || !r.Withdrawn
		}
	}
	for d, since := range held {
		if !offered[d] && (named[d] || now.Sub(since) > strayAge) {
			digests = append(digests, d)
		}
	}
	slices.Sort(digests)
	return digests
}

// keepUp gets the bytes of published releases that this server lacks, because
// it was down or joined later, and drops what none offers, until ctx ends.
func (p *publisher) keepUp(ctx context.Context, candidates func(digest string) []artifact.Peer) {
	ticker := time.NewTicker(syncInterval)
	defer ticker.Stop()
	var told string // the last error, so that it is logged once
	for {
		// A server that starts does not know all releases yet, nor any at first.
		knowsAll := p.raft.Ready() == nil
		releases := p.raft.State().View().Releases()
		for _, r := range releases {
			for _, a := range r.Artifacts {
				if r.Withdrawn || p.store.Has(a.SHA256) {
					continue
				}
				// What others pass on meanwhile comes by chunks; between servers the whole will do.
				whole := release.Artifact{SHA256: a.SHA256, Size: a.Size}
				err := p.fetch(ctx, whole, func() []artifact.Peer { return candidates(a.SHA256) })
				if err != nil && ctx.Err() == nil && err.Error() != told {
					told = err.Error()
					p.logger.Warn("get release bytes", "release", r.Version, "error", err)
				}
			}
		}
		if knowsAll {
			if err := p.dropUnoffered(releases); err != nil {
				p.logger.Warn("drop bytes that no release offers", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
