package webui

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
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
}

func (u *ui) createJoinToken(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Role    fleet.HostRole `json:"role"`
		Segment string         `json:"segment"`
		TTL     string         `json:"ttl"`
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
	ttl := defaultJoinTTL
	if in.TTL != "" {
		var err error
		if ttl, err = parseTTL(in.TTL, maxJoinTTL); err != nil {
			return err
		}
	}
	v := u.View()
	token, hash, err := newJoinToken(v)
	if err != nil {
		return err
	}
	t := fleet.JoinToken{ID: uuid.NewString(), Hash: hash, Role: in.Role, Segment: in.Segment, ExpiresAt: u.Now().Add(ttl).UTC()}
	if err := u.propose(r, fleet.JoinTokenCreated{Token: t}); err != nil {
		return err
	}
	return ok(w, joinTokenJSON{ID: t.ID, Token: token, Command: joinCommand(v, in.Role, token), ExpiresAt: t.ExpiresAt})
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
var plainAddress = regexp.MustCompile(`^(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z.-]+):[0-9]{1,5}$`)

// joinCommand is what to run on the new host. The token goes in by the
// environment: the process list shows arguments to every user.
func joinCommand(v fleet.View, role fleet.HostRole, token string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "MOULT_TOKEN=%s moult %s", token, role)
	for _, h := range v.Hosts() {
		if h.Role == fleet.RoleServer && plainAddress.MatchString(h.PeerAddr) {
			b.WriteString(" --join " + h.PeerAddr)
		}
	}
	return b.String()
}
