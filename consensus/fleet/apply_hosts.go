package fleet

import (
	"bytes"
	"crypto/ed25519"
	"maps"
	"slices"
	"strings"
)

func applyClusterInitialized(t *tx, c ClusterInitialized) *Error {
	m := t.view().meta()
	if m.Cluster.ID != "" {
		return refuse(CodeClusterExists, "the cluster %s is initialized already; let this server join it with --join and --token", m.Cluster.ID)
	}
	if c.Server.Segment == "" {
		c.Server.Segment = DefaultSegment
	}
	switch {
	case !validID(c.Cluster.ID):
		return refuse(CodeBadRequest, "cluster.id %q: %s", c.Cluster.ID, nameRule)
	case !validID(c.Server.ID):
		return refuse(CodeBadRequest, "server.id %q: %s", c.Server.ID, nameRule)
	case !ValidName(c.Server.Name):
		return refuse(CodeBadRequest, "server.name %q: %s", c.Server.Name, nameRule)
	case !validSegment(c.Server.Segment):
		return refuse(CodeBadRequest, "server.segment %q: %s", c.Server.Segment, segmentRule)
	}
	if refused := checkAddresses(c.Server.GossipAddr, c.Server.PeerAddr, c.Server.HTTPAddr); refused != nil {
		return refused
	}
	if refused := checkAlso(c.Server.Segment, c.Server.Also); refused != nil {
		return refused
	}
	if refused := checkLabels(c.Server.Labels); refused != nil {
		return refused
	}
	if refused := checkUser(c.Admin); refused != nil {
		return refused
	}
	if refused := checkAPIToken(c.Token); refused != nil {
		return refused
	}
	m.Cluster = c.Cluster
	m.Cluster.CreatedAt = t.at
	t.put(tableMeta, m)
	c.Server.Role, c.Server.EnrolledAt = RoleServer, t.at
	t.addHost(c.Server)
	c.Admin.Role, c.Admin.CreatedAt, c.Admin.KnownFrom = Admin, t.at, nil
	t.put(tableUsers, c.Admin)
	c.Token.Role, c.Token.CreatedAt, c.Token.CreatedBy = Admin, t.at, t.actor
	t.put(tableAPITokens, c.Token)
	t.touch("cluster", "hosts", "host:"+c.Server.ID, "users", "tokens")
	t.audit("cluster "+c.Cluster.ID, "first server "+c.Server.Name)
	return nil
}

func applyJoinTokenCreated(t *tx, c JoinTokenCreated) *Error {
	k := c.Token
	if k.Segment == "" {
		k.Segment = DefaultSegment
	}
	switch {
	case !validID(k.ID):
		return refuse(CodeBadRequest, "token.id %q: %s", k.ID, nameRule)
	case !validID(k.Hash):
		return refuse(CodeBadRequest, "token.hash: give the sha256 of the secret in hex")
	case k.Role != RoleAgent && k.Role != RoleServer:
		return refuse(CodeBadRequest, "role %q: give agent or server", k.Role)
	case !validSegment(k.Segment):
		return refuse(CodeBadRequest, "segment %q: %s", k.Segment, segmentRule)
	case !k.ExpiresAt.After(t.at) || !validTime(k.ExpiresAt):
		return refuse(CodeBadRequest, "ttl is not positive; give how long the token is good for, such as 15m")
	}
	_, sameID := first[JoinToken](t.Txn, tableJoinTokens, "id", k.ID)
	if _, sameHash := t.view().JoinTokenByHash(k.Hash); sameID || sameHash {
		return refuse(CodeConflict, "this join token exists already; make another one with: moult token create")
	}
	if refused := t.roomForJoinToken(); refused != nil {
		return refused
	}
	k.ExpiresAt = k.ExpiresAt.UTC()
	k.CreatedAt, k.CreatedBy, k.UsedAt, k.UsedBy = t.at, t.actor, nil, ""
	k.CANumber = t.view().meta().Cluster.CANumber
	t.put(tableJoinTokens, k)
	t.added.joinTokens++
	t.touch("tokens")
	t.audit("join token "+k.ID, string(k.Role)+" in segment "+k.Segment)
	return nil
}

// checkNewHost refuses a host that is not complete.
func checkNewHost(h Host) *Error {
	switch {
	case !validID(h.ID):
		return refuse(CodeBadRequest, "host.id %q: %s", h.ID, nameRule)
	case !ValidName(h.Name):
		return refuse(CodeBadRequest, "name %q: %s with --name", h.Name, nameRule)
	case len(h.PublicKey) != ed25519.PublicKeySize:
		return refuse(CodeBadRequest, "public_key is %d bytes; give the %d of an ed25519 key", len(h.PublicKey), ed25519.PublicKeySize)
	case !ValidName(h.OS):
		return refuse(CodeBadRequest, "os %q: give Go's name of it, such as linux", h.OS)
	case !ValidName(h.Arch):
		return refuse(CodeBadRequest, "arch %q: give Go's name of it, such as amd64", h.Arch)
	}
	if refused := checkAddresses(h.GossipAddr, h.PeerAddr, h.HTTPAddr); refused != nil {
		return refused
	}
	return checkLabels(h.Labels)
}

func applyHostEnrolled(t *tx, c HostEnrolled) *Error {
	v := t.view()
	token, ok := v.JoinTokenByHash(c.TokenHash)
	if !ok {
		return refuse(CodeTokenInvalid, "the join token is not known here; make a new one with: moult token create")
	}
	h := c.Host
	known, enrolled := v.Host(h.ID)
	if token.UsedAt != nil {
		if enrolled && token.UsedBy == h.ID && bytes.Equal(known.PublicKey, h.PublicKey) {
			t.unaudited() // it did not hear the first answer
			return nil
		}
		return refuse(CodeTokenUsed, "the join token was used already; make a new one with: moult token create")
	}
	if t.at.After(token.ExpiresAt) {
		return refuse(CodeTokenExpired, "the join token expired at %s; make a new one with: moult token create", token.ExpiresAt.UTC().Format(timeFormat))
	}
	if v.tokenOfRetiredCA(token) {
		return refuse(CodeTokenInvalid, "the join token was made before the cluster's CA was changed, and whoever has the old CA's key could have read it; make a new one with: moult token create")
	}
	if h.Role != "" && h.Role != token.Role {
		return refuse(CodeBadRequest, "the join token is for the role %s, not %s; make another one with: moult token create --role %s", token.Role, clip(string(h.Role), 16), clip(string(h.Role), 16))
	}
	if refused := checkNewHost(h); refused != nil {
		return refused
	}
	if d, denied := v.deniedBefore(h.ID, h.PublicKey); denied {
		return refuse(CodeConflict, "this host was removed as %s, and its id and key are denied; delete the folder identity in its data directory and join again: the token is still good", d.Name)
	}
	if enrolled {
		return refuse(CodeConflict, "host id %s has joined already; remove it first with: moult host remove %s", h.ID, known.Name)
	}
	if other, taken := v.HostByName(h.Name); taken {
		return refuse(CodeNameTaken, "a host called %q has joined already (%s); give another --name, or remove that one first with: moult %s remove %s", h.Name, other.Role, nounOf(other.Role), h.Name)
	}
	if refused := checkAlso(token.Segment, h.Also); refused != nil {
		return refused
	}
	if hosts := v.meta().size.hosts; hosts >= t.bounds.hosts {
		return refuse(CodeLimitReached, "%d hosts have joined, and no more fit; remove one that is gone with: moult host remove", hosts)
	}
	h.Role, h.Segment, h.EnrolledAt, h.Quarantine = token.Role, token.Segment, t.at, nil
	t.addHost(h)
	at := t.at
	token.UsedAt, token.UsedBy = &at, h.ID
	t.put(tableJoinTokens, token)
	t.touch("hosts", "host:"+h.ID, "tokens")
	t.audit("host "+h.Name, string(h.Role)+" in "+segmentsText(h))
	return nil
}

// segmentsText tells a host's segments for people.
func segmentsText(h Host) string {
	if len(h.Also) == 0 {
		return "segment " + h.Segment
	}
	return "segments " + strings.Join(h.Segments(), ", ")
}

// nounOf is the command that is about hosts of a role.
func nounOf(r HostRole) string {
	if r == RoleServer {
		return "servers"
	}
	return "host"
}

func (t *tx) host(id string) (Host, *Error) {
	h, ok := t.view().Host(id)
	if !ok {
		return h, refuse(CodeHostNotFound, "no host has the id %q; `moult hosts` lists them", id)
	}
	return h, nil
}

// addHost and dropHost are for hosts that come and go, which are counted.
func (t *tx) addHost(h Host) {
	t.put(tableHosts, h)
	t.added.hosts++
}

func (t *tx) dropHost(h Host) {
	t.remove(tableHosts, h)
	t.added.hosts--
}

func applyHostRemoved(t *tx, c HostRemoved) *Error {
	h, refused := t.host(c.HostID)
	if refused != nil {
		return refused
	}
	t.dropHost(h)
	t.touch("hosts", "host:"+h.ID)
	t.audit("host "+h.Name, "")
	return nil
}

func applyHostAddressesChanged(t *tx, c HostAddressesChanged) *Error {
	h, refused := t.host(c.HostID)
	if refused != nil {
		return refused
	}
	if refused := checkAddresses(c.GossipAddr, c.PeerAddr, c.HTTPAddr); refused != nil {
		return refused
	}
	if h.GossipAddr == c.GossipAddr && h.PeerAddr == c.PeerAddr && h.HTTPAddr == c.HTTPAddr {
		t.unaudited() // a host that starts again where it was
		return nil
	}
	h.GossipAddr, h.PeerAddr, h.HTTPAddr = c.GossipAddr, c.PeerAddr, c.HTTPAddr
	t.put(tableHosts, h)
	t.touch("hosts", "host:"+h.ID)
	t.audit("host "+h.Name, "now at "+h.PeerAddr)
	return nil
}

func applyServerTLSChanged(t *tx, c ServerTLSChanged) *Error {
	h, refused := t.host(c.HostID)
	if refused != nil {
		return refused
	}
	if h.Role != RoleServer {
		return refuse(CodeBadRequest, "host_id: %s is no server and has no UI", h.Name)
	}
	if h.HTTPTLS == c.TLS {
		t.unaudited() // a server that starts again as it was
		return nil
	}
	h.HTTPTLS = c.TLS
	t.put(tableHosts, h)
	t.touch("hosts", "host:"+h.ID)
	t.audit("host "+h.Name, map[bool]string{true: "its UI speaks TLS", false: "its UI speaks plain HTTP"}[c.TLS])
	return nil
}

func applyHostSegmentsChanged(t *tx, c HostSegmentsChanged) *Error {
	h, refused := t.host(c.HostID)
	if refused != nil {
		return refused
	}
	if refused := checkAlso(h.Segment, c.Also); refused != nil {
		return refused
	}
	if slices.Equal(h.Also, c.Also) {
		t.unaudited() // a host that starts again as it was
		return nil
	}
	h.Also = slices.Clone(c.Also)
	t.put(tableHosts, h)
	t.touch("hosts", "host:"+h.ID)
	t.audit("host "+h.Name, "now in "+segmentsText(h))
	return nil
}

func applyHostLabelsSet(t *tx, c HostLabelsSet) *Error {
	h, refused := t.host(c.HostID)
	if refused != nil {
		return refused
	}
	if refused := checkLabels(c.Labels); refused != nil {
		return refused
	}
	if c.Was != nil && !maps.Equal(c.Was, h.Labels) {
		return refuse(CodeLabelsChanged, "the labels of %s were changed meanwhile to %s; look at them and say again what to change", h.Name, describeLabels(h.Labels))
	}
	if maps.Equal(c.Labels, h.Labels) {
		t.unaudited() // pressed twice
		return nil
	}
	h.Labels = nil // as a snapshot restores none
	if len(c.Labels) > 0 {
		h.Labels = maps.Clone(c.Labels) // views share the map that was there before
	}
	t.put(tableHosts, h)
	t.touch("hosts", "host:"+h.ID)
	t.audit("host "+h.Name, describeLabels(h.Labels))
	return nil
}

// describeLabels tells labels for people, in the order of keys.
func describeLabels(labels map[string]string) string {
	if len(labels) == 0 {
		return "no labels"
	}
	words := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		words = append(words, k+"="+labels[k])
	}
	return strings.Join(words, " ")
}
