package webui

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"moult/consensus/fleet"
	"moult/mesh/identity"
)

// maxNamed is how many hosts a refusal names.
const maxNamed = 20

// CAs knows what a change of the cluster's CA needs, and how far the hosts are.
type CAs interface {
	// Hosts tells of each host whether it has followed the present step, by name.
	Hosts() []CAHost
	// Begin makes a new CA.
	Begin() (fleet.CARotationBegun, error)
	// Switch makes what the new CA has to sign when it begins to.
	Switch() (fleet.CASwitched, error)
	// Retire makes what ends the trust in the old CA.
	Retire() (fleet.CARetired, error)
}

// CAHost is how far a host is with the present step of a change of the CA.
type CAHost struct {
	Name   string
	Server bool
	Done   bool
	Why    string // unless Done
}

// caJSON is the cluster's CA as the API shows it: never a key.
type caJSON struct {
	Number    uint64    `json:"number"` // how often it was changed
	SHA256    string    `json:"sha256"` // of its certificate: what join tokens pin
	Ends      time.Time `json:"ends"`
	UICA      string    `json:"ui_ca"`        // PEM, for browsers and --ca
	UISHA256  string    `json:"ui_ca_sha256"` // for --ca-sha256
	Stage     string    `json:"stage"`        // of a change: "": none is under way; prepared, switched
	Next      *nextCA   `json:"next"`         // while prepared: the CA that signs next
	OldSHA256 string    `json:"old_sha256"`   // while switched: the CA that is still trusted beside

	Reason      string     `json:"reason"`
	StartedAt   *time.Time `json:"started_at"`
	StartedBy   string     `json:"started_by"`
	SwitchedAt  *time.Time `json:"switched_at"`
	CompletedAt *time.Time `json:"completed_at"`

	Hosts         int         `json:"hosts"`
	Confirmed     int         `json:"confirmed"`      // have said that they have followed the present step
	Pending       []pendingCA `json:"pending"`        // the others
	GossipPending []string    `json:"gossip_pending"` // segments whose gossip keys have to be changed before the old CA is retired
}

type nextCA struct {
	Number   uint64    `json:"number"`
	SHA256   string    `json:"sha256"`
	Ends     time.Time `json:"ends"`
	UICA     string    `json:"ui_ca"`
	UISHA256 string    `json:"ui_ca_sha256"`
}

type pendingCA struct {
	Name string `json:"name"`
	Role string `json:"role"`
	Why  string `json:"why"`
}

func showCA(number uint64, certPEM, keyPEM []byte) (nextCA, error) {
	ca, err := identity.LoadCA(certPEM, keyPEM)
	if err != nil {
		return nextCA{}, err
	}
	ui, err := ca.UI()
	if err != nil {
		return nextCA{}, err
	}
	hash, err := identity.CAHash(certPEM)
	return nextCA{Number: number, SHA256: hash, Ends: ca.Ends(), UICA: string(ui.CertPEM()), UISHA256: ui.Hash()}, err
}

func (u *ui) ca() (caJSON, error) {
	v := u.View()
	cluster, ok := v.Cluster()
	if !ok {
		return caJSON{}, refuse(codeUnavailable, "this server does not belong to a cluster yet; see: moult status")
	}
	now, err := showCA(cluster.CANumber, cluster.CACert, cluster.CAKey)
	if err != nil {
		return caJSON{}, err
	}
	out := caJSON{
		Number: now.Number, SHA256: now.SHA256, Ends: now.Ends, UICA: now.UICA, UISHA256: now.UISHA256,
		Pending: []pendingCA{}, GossipPending: list(v.GossipToChange()),
	}
	if r := cluster.CARotation; r != nil {
		out.Stage, out.Reason, out.StartedAt, out.StartedBy = string(r.Stage), r.Reason, &r.StartedAt, r.StartedBy
		out.SwitchedAt, out.CompletedAt = r.SwitchedAt, r.CompletedAt
		switch r.Stage {
		case fleet.CAStagePrepared:
			next, err := showCA(r.Number, r.Cert, r.Key)
			if err != nil {
				return caJSON{}, err
			}
			out.Next = &next
		case fleet.CAStageSwitched:
			if out.OldSHA256, err = identity.CAHash(r.Old); err != nil {
				return caJSON{}, err
			}
		}
	}
	for _, h := range u.CAs.Hosts() {
		out.Hosts++
		if h.Done {
			out.Confirmed++
			continue
		}
		role := fleet.RoleAgent
		if h.Server {
			role = fleet.RoleServer
		}
		out.Pending = append(out.Pending, pendingCA{Name: h.Name, Role: string(role), Why: h.Why})
	}
	return out, nil
}

func (u *ui) getCA(w http.ResponseWriter, _ *http.Request) error {
	out, err := u.ca()
	if err != nil {
		return err
	}
	return ok(w, out)
}

// rotateCA makes a new CA, which all hosts get to trust. Nothing else changes yet.
func (u *ui) rotateCA(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Reason string `json:"reason"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if len(in.Reason) > fleet.MaxDetailBytes {
		return badRequest("reason: it is %d bytes; give at most %d", len(in.Reason), fleet.MaxDetailBytes)
	}
	c, err := u.CAs.Begin()
	if err != nil {
		return err
	}
	c.Reason = in.Reason
	if err := u.propose(r, c); err != nil {
		return err
	}
	return u.getCA(w, r)
}

// advanceCA takes the next step of a change of the CA: from prepared to switched, or
// from switched to retired. The caller says which step it means, so that a repeated
// request takes no second one.
func (u *ui) advanceCA(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		From          string `json:"from"`
		Force         bool   `json:"force"`
		ExpectPending *int   `json:"expect_pending"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	stage := fleet.CAStage(in.From)
	if stage != fleet.CAStagePrepared && stage != fleet.CAStageSwitched {
		return badRequest("from: give the present stage, prepared or switched, as GET /api/ca says")
	}
	if in.Force && in.ExpectPending == nil {
		return badRequest("expect_pending: force takes how many hosts are pending, as GET /api/ca says")
	}
	cluster, _ := u.View().Cluster()
	if cluster.CARotation == nil || cluster.CARotation.Stage != stage {
		return refuse(fleet.CodeConflict, fmt.Sprintf("the change of the CA is not %s; look at it with: moult ca status", stage))
	}
	missing, err := u.mayAdvanceCA(in.Force, in.ExpectPending)
	if err != nil {
		return err
	}
	var c fleet.Change
	if stage == fleet.CAStagePrepared {
		s, makeErr := u.CAs.Switch()
		s.Forced, s.Missing = len(missing) > 0, missing
		c, err = s, makeErr
	} else {
		s, makeErr := u.CAs.Retire()
		s.Forced, s.Missing = len(missing) > 0, missing
		c, err = s, makeErr
	}
	if err != nil {
		return err
	}
	if err := u.propose(r, c); err != nil {
		return err
	}
	return u.getCA(w, r)
}

// mayAdvanceCA refuses a step that would leave hosts behind, unless that is forced
// with their number. A majority of the servers must have followed all the same: the
// others would not speak Raft with them any more.
func (u *ui) mayAdvanceCA(force bool, expect *int) (missing []string, err error) {
	servers, followed := 0, 0
	for _, h := range u.CAs.Hosts() {
		if h.Server {
			servers++
		}
		if !h.Done {
			missing = append(missing, h.Name)
		} else if h.Server {
			followed++
		}
	}
	slices.Sort(missing)
	told := strings.Join(missing[:min(len(missing), maxNamed)], ", ")
	if len(missing) > maxNamed {
		told += fmt.Sprintf(" and %d others", len(missing)-maxNamed)
	}
	switch {
	case 2*followed <= servers:
		return nil, refuse(codeHostsPending, fmt.Sprintf("only %d of %d servers have followed, and a majority has to: else the servers would not believe each other; not yet: %s", followed, servers, told))
	case len(missing) == 0:
		return nil, nil
	case !force:
		return nil, refuse(codeHostsPending, fmt.Sprintf("%d hosts have not followed yet: %s; see why with: moult ca status; wait for them, or go on without them: moult ca rotate --force", len(missing), told))
	case *expect != len(missing):
		return nil, refuse(codeHostsChanged, fmt.Sprintf("%d hosts are pending by now, not %d; look at them with: moult ca status", len(missing), *expect))
	}
	return missing, nil
}
