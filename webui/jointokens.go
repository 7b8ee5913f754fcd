package webui

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"moult/consensus/fleet"
	"moult/mesh/identity"
)

// How long a join token lets a host in.
const (
	defaultJoinTTL = 15 * time.Minute
	maxJoinTTL     = 7 * 24 * time.Hour
)

// joinTokenJSON is a new join token; its secret is shown this once.
type joinTokenJSON struct {
	ID        string    `json:"id"`
	Token     string    `json:"token"`
	Command   string    `json:"command"`
	ExpiresAt time.Time `json:"expires_at"`

	Scripts joinScripts `json:"scripts"`
}

func (u *ui) createJoinToken(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Role    fleet.HostRole `json:"role"`
		Segment string         `json:"segment"`
		TTL     string         `json:"ttl"`
		Arch    string         `json:"arch"`
		Relay   string         `json:"relay"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if in.Role == "" {
		in.Role = fleet.RoleAgent
	}
	if in.Segment == "" {
		in.Segment = fleet.DefaultSegment
	}
	if in.Arch == "" {
		in.Arch = "amd64"
	}
	if in.Arch != "amd64" && in.Arch != "arm64" {
		return badRequest("arch: %s is not amd64 or arm64", quoted(in.Arch))
	}
	ttl := defaultJoinTTL
	if in.TTL != "" {
		var err error
		if ttl, err = parseTTL(in.TTL, maxJoinTTL); err != nil {
			return err
		}
	}
	p := u.picture()
	v := p.View
	join := joinAddresses(v)
	if in.Relay != "" {
		address, err := p.relayAddress(in.Relay, in.Segment, in.Role)
		if err != nil {
			return err
		}
		join = []string{address}
	}
	token, hash, err := newJoinToken(v)
	if err != nil {
		return err
	}
	t := fleet.JoinToken{ID: uuid.NewString(), Hash: hash, Role: in.Role, Segment: in.Segment, ExpiresAt: u.Now().Add(ttl).UTC()}
	if err := u.propose(r, fleet.JoinTokenCreated{Token: t}); err != nil {
		return err
	}
	return ok(w, joinTokenJSON{
		ID: t.ID, Token: token, Command: joinCommand(join, in.Role, token), ExpiresAt: t.ExpiresAt,
		Scripts: u.joinScripts(in.Role, token, in.Arch, join, in.Relay != ""),
	})
}

func newJoinToken(v fleet.View) (token, hash string, err error) {
	cluster, exists := v.Cluster()
	if !exists {
		return "", "", refuse(codeUnavailable, "this server does not belong to a cluster yet; see: moult status")
	}
	caHash, err := identity.CAHash(cluster.CACert)
	if err != nil {
		return "", "", fmt.Errorf("hash the cluster's CA: %w", err)
	}
	return identity.NewToken(caHash)
}

// plainAddress is a HOST:PORT that a shell takes as it is. Servers name their own
// addresses, and this one is pasted into a root shell.
var plainAddress = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z.-]+):[0-9]{1,5}$`)
})

// joinAddresses are where a new host can join: at the servers.
func joinAddresses(v fleet.View) (addresses []string) {
	for _, h := range v.Hosts() {
		if h.Role == fleet.RoleServer && plainAddress().MatchString(h.PeerAddr) {
			addresses = append(addresses, h.PeerAddr)
		}
	}
	return addresses
}

// joinableRelays returns the hosts through which others can join: those that are in
// several segments, and online.
func (p picture) joinableRelays() (relays []fleet.Host) {
	for _, h := range p.Hosts() {
		if len(h.Also) > 0 && p.observed[h.ID].Online {
			relays = append(relays, h)
		}
	}
	return relays
}

// relayAddress is where a new host of a segment joins through a relay.
func (p picture) relayAddress(id, segment string, role fleet.HostRole) (string, error) {
	h, exists := p.Host(id)
	if !exists {
		h, exists = p.HostByName(id)
	}
	switch {
	case !exists:
		return "", refuse(fleet.CodeHostNotFound, "relay: no host has the id or name "+quoted(id)+"; `moult hosts` lists them")
	case role == fleet.RoleServer:
		return "", badRequest("relay: a server must reach the other servers itself; leave it out")
	case len(h.Also) == 0:
		return "", badRequest("relay: %s is in one segment only; name a host that was started with --also-segment", h.Name)
	case !slices.Contains(h.Segments(), segment):
		return "", badRequest("relay: %s is in the segments %s, not in %s; name a relay of that segment", h.Name, strings.Join(h.Segments(), ", "), quoted(segment))
	case !p.observed[h.ID].Online:
		return "", refuse(codeHostOffline, "relay: "+h.Name+" is offline; start it, or name another relay")
	}
	address := h.PeerAddrIn(segment)
	if !plainAddress().MatchString(address) {
		return "", badRequest("relay: %s told no address in segment %s that can be dialed; start it with --also-segment %s=HOST:PORT", h.Name, segment, segment)
	}
	return address, nil
}

// joinCommand is what to run on the new host. The token goes in by the
// environment: the process list shows arguments to every user.
func joinCommand(join []string, role fleet.HostRole, token string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "MOULT_TOKEN=%s moult %s", token, role)
	for _, address := range join {
		b.WriteString(" --join " + address)
	}
	return b.String()
}
