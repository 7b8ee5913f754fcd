package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"moult/consensus"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// maxSeeds is how many gossip addresses of each segment a host is told.
const maxSeeds = 8

// enrolment lets hosts in, and renews the certificates of those that are in.
type enrolment struct {
	raft     *consensus.Node
	roster   *mesh.Roster  // who is alive; nil while this server has no mesh yet
	lifetime time.Duration // of certificates
	denyList func() []byte // signed; nil: this server has none to give yet
	logger   *slog.Logger
}

// enrol uses up the token, then issues the certificate.
func (e *enrolment) enrol(ctx context.Context, req identity.JoinRequest, secretHash string) (identity.Enrolment, error) {
	host := fleet.Host{
		ID: req.HostID, Name: req.Name, Role: fleet.HostRole(req.Role), OS: req.OS, Arch: req.Arch, PublicKey: req.PublicKey,
		GossipAddr: req.GossipAddr, PeerAddr: req.PeerAddr, HTTPAddr: req.HTTPAddr, Also: hostSegments(req.Also),
	}
	_, err := e.raft.Propose(ctx, "host:"+req.Name, fleet.HostEnrolled{TokenHash: secretHash, Host: host})
	if err := coded(err, "take new hosts"); err != nil {
		return identity.Enrolment{}, err
	}
	v := e.raft.State().View()
	host, ok := v.Host(req.HostID)
	if !ok {
		return identity.Enrolment{}, &identity.CodedError{Code: fleet.CodeHostNotFound, Message: "the host was removed while it joined; make a new token", Status: 403}
	}
	answer, err := e.answer(v, host, req.TakesDenied)
	if err != nil {
		e.logger.Error("enrol a host", "host", host.ID, "error", err)
		return identity.Enrolment{}, err
	}
	e.logger.Info("host joined", "host", host.ID, "name", host.Name, "role", host.Role, "segments", host.Segments())
	return answer, nil
}

// coded makes what a proposal returned one of the join protocol's refusals.
func coded(err error, what string) error {
	var refused *fleet.Error
	switch {
	case errors.As(err, &refused):
		return &identity.CodedError{Code: refused.Code, Message: refused.Message, Status: 403}
	case err != nil:
		return &identity.CodedError{Code: "unavailable", Message: fmt.Sprintf("the cluster cannot %s now (%v); try again when a majority of the servers is up", what, err), Status: 503}
	}
	return nil
}

func hostSegments(also []identity.SegmentAddr) (segments []fleet.HostSegment) {
	for _, a := range also {
		segments = append(segments, fleet.HostSegment(a))
	}
	return segments
}

// renew answers the host at the other end of a connection of moult-renew.
func (e *enrolment) renew(ctx context.Context, req identity.RenewRequest) (identity.Enrolment, error) {
	return e.renewFor(ctx, nodeport.PeerFrom(ctx).HostID, nodeport.PeerKeyFrom(ctx), req)
}

// renewFor issues a fresh certificate for the key that a host was enrolled with,
// and records which segments it is in. A server that is not caught up issues none:
// the host may have been removed.
func (e *enrolment) renewFor(ctx context.Context, hostID string, key ed25519.PublicKey, req identity.RenewRequest) (identity.Enrolment, error) {
	if err := e.raft.Ready(); err != nil {
		return identity.Enrolment{}, &identity.CodedError{Code: "unavailable", Message: fmt.Sprintf("this server is not caught up (%v); ask another one", err), Status: 503}
	}
	v := e.raft.State().View()
	host, ok := v.Host(hostID)
	if !ok || !bytes.Equal(host.PublicKey, key) {
		return identity.Enrolment{}, &identity.CodedError{Code: fleet.CodeHostNotFound, Message: "this host was removed; join it again with a new token", Status: 403}
	}
	if also := hostSegments(req.Also); !slices.Equal(host.Also, also) {
		_, err := e.raft.Propose(ctx, "host:"+host.Name, fleet.HostSegmentsChanged{HostID: hostID, Also: also})
		if err := coded(err, "record a host's segments"); err != nil {
			return identity.Enrolment{}, err
		}
		host.Also = also
	}
	answer, err := e.answer(v, host, req.TakesDenied)
	if err != nil {
		e.logger.Error("renew a certificate", "host", hostID, "error", err)
		return identity.Enrolment{}, err
	}
	e.logger.Info("certificate renewed for a host", "host", hostID, "name", host.Name)
	return answer, nil
}

// answer is all that a host has to know: its certificate, the keys of its own
// segments and no others, whom to talk to and, where it takes that, whom not.
func (e *enrolment) answer(v fleet.View, host fleet.Host, takesDenied bool) (identity.Enrolment, error) {
	cluster, _ := v.Cluster()
	ca, err := identity.LoadCA(cluster.CACert, cluster.CAKey)
	if err != nil {
		return identity.Enrolment{}, err
	}
	id := identity.Identity{Cluster: cluster.ID, HostID: host.ID, Name: host.Name, Role: roleOf(host.Role)}
	cert, err := ca.Issue(id, host.PublicKey, time.Now(), e.lifetime)
	if err != nil {
		return identity.Enrolment{}, err
	}
	out := identity.Enrolment{Identity: id, CertPEM: cert, CAPEM: cluster.CACert, ReleaseKeys: cluster.ReleaseKeys, KeyPolicy: identity.KeyPolicy{ReleaseThreshold: cluster.ReleaseThreshold, KeysNumber: cluster.KeysNumber}}
	for _, h := range v.Hosts() {
		if h.Role == fleet.RoleServer && h.ID != host.ID {
			out.Servers = append(out.Servers, h.PeerAddr)
		}
	}
	out.Relays = relaysFor(v, host)
	if takesDenied && e.denyList != nil {
		out.Denied = e.denyList()
	}
	for i, name := range host.Segments() {
		s, err := segmentAnswer(v, cluster, name, e.seeds(v, name, host.ID))
		if err != nil {
			return identity.Enrolment{}, err
		}
		if i == 0 {
			out.Segment, out.GossipKeys, out.GossipRevision, out.GossipJoin = s.Name, s.GossipKeys, s.GossipRevision, s.GossipJoin
		} else {
			out.Also = append(out.Also, s)
		}
	}
	return out, nil
}

// maxRelaysTold is how many relays a host is told of.
const maxRelaysTold = 8

// relaysFor are node ports of relays of a host's segments, as it reaches them.
func relaysFor(v fleet.View, host fleet.Host) (addrs []string) {
	for _, h := range v.Hosts() {
		if len(h.Also) == 0 || h.ID == host.ID || len(addrs) == maxRelaysTold {
			continue
		}
		for _, segment := range host.Segments() {
			if addr := h.PeerAddrIn(segment); addr != "" {
				addrs = append(addrs, addr)
				break
			}
		}
	}
	return addrs
}

func segmentAnswer(v fleet.View, cluster fleet.Cluster, name string, seeds []string) (identity.Segment, error) {
	if r, changed := v.GossipRing(name); changed {
		return identity.Segment{Name: name, GossipKeys: r.Keys, GossipRevision: r.Revision, GossipJoin: seeds}, nil
	}
	return firstKeys(cluster, name, seeds)
}

// firstKeys answers with the keys that a segment has before they ever change.
func firstKeys(cluster fleet.Cluster, name string, seeds []string) (identity.Segment, error) {
	keys, err := identity.GossipKeys(cluster.GossipKeys, cluster.CAKey, cluster.ID, name)
	return identity.Segment{Name: name, GossipKeys: keys, GossipJoin: seeds}, err
}

// seeds are gossip addresses of a segment's hosts: those that are online first,
// and among them those that stay, servers and relays.
func (e *enrolment) seeds(v fleet.View, segment, except string) []string {
	rank := func(h fleet.Host) (n int) {
		if e.roster != nil {
			if m, ok := e.roster.Member(h.ID); !ok || m.Liveness != mesh.Online {
				n += 2
			}
		}
		if h.Role != fleet.RoleServer && len(h.Also) == 0 {
			n++
		}
		return n
	}
	type candidate struct {
		addr string
		rank int
	}
	var found []candidate
	for _, h := range v.Hosts() {
		if addr := h.GossipAddrIn(segment); addr != "" && h.ID != except {
			found = append(found, candidate{addr, rank(h)})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
	var addrs []string
	for _, c := range found[:min(len(found), maxSeeds)] {
		addrs = append(addrs, c.addr)
	}
	return addrs
}
