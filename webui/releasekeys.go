package webui

import (
	"errors"
	"net/http"
	"slices"
	"time"

	"moult/consensus/fleet"
	"moult/updater/release"
)

// ReleaseKeys are the keys that have to sign releases, as the servers know them.
// Hosts go by their own pins.
func ReleaseKeys(c fleet.Cluster) release.KeySet {
	return release.KeySet{Number: c.KeysNumber, Threshold: c.ReleaseThreshold, Keys: c.ReleaseKeys}
}

// releaseKeysJSON is the release keys as the API shows them.
type releaseKeysJSON struct {
	Cluster     string   `json:"cluster"`
	Number      uint64   `json:"number"` // of the newest key statement; 0: there is none
	Threshold   int      `json:"threshold"`
	Keys        []string `json:"keys"`
	HostsBehind []string `json:"hosts_behind"` // names of the hosts that have not said that they follow it
}

func (u *ui) listReleaseKeys(w http.ResponseWriter, _ *http.Request) error {
	return ok(w, u.releaseKeys())
}

func (u *ui) releaseKeys() releaseKeysJSON {
	v := u.View()
	c, _ := v.Cluster()
	set := ReleaseKeys(c)
	out := releaseKeysJSON{Cluster: c.ID, Number: set.Number, Threshold: set.Needed(), Keys: list(set.Keys), HostsBehind: []string{}}
	if set.Number == 0 || u.FollowedKeys == nil {
		return out
	}
	follows := u.FollowedKeys()
	for _, h := range v.Hosts() {
		if h.Role == fleet.RoleAgent && follows[h.ID] < set.Number {
			out.HostsBehind = append(out.HostsBehind, h.Name)
		}
	}
	slices.Sort(out.HostsBehind)
	return out
}

// keyStatementBody is a signed key statement, both parts as the files have them.
type keyStatementBody struct {
	Statement string `json:"statement"`
	Signature string `json:"signature"`
}

// changeReleaseKeys takes a key statement that enough of the present keys signed.
func (u *ui) changeReleaseKeys(w http.ResponseWriter, r *http.Request) error {
	var body keyStatementBody
	if err := decode(w, r, &body); err != nil {
		return err
	}
	signed := release.SignedStatement{Statement: []byte(body.Statement), Signature: []byte(body.Signature)}
	c, _ := u.View().Cluster()
	s, err := release.ParseStatement(signed.Statement)
	if err != nil {
		return badRequest("statement: %v; make one with: moult key rotate", err)
	}
	if s.Created.After(u.Now().Add(24 * time.Hour)) {
		return badRequest("statement: created: %s lies in the future; is the clock of the machine that made it right?", s.Created.Format(time.RFC3339))
	}
	if set, err := ReleaseKeys(c).Advance(c.ID, signed); err != nil {
		return refusedStatement(err)
	} else if err := u.propose(r, fleet.ReleaseKeysChanged{
		Number: set.Number, Threshold: set.Needed(), Keys: set.Keys,
		Signed: fleet.KeyStatement{Statement: signed.Statement, Signature: signed.Signature},
	}); err != nil {
		return err
	}
	return ok(w, u.releaseKeys())
}

func refusedStatement(err error) error {
	switch {
	case errors.Is(err, release.ErrBadSignature), errors.Is(err, release.ErrTooFewSignatures), errors.Is(err, release.ErrNoReleaseKey):
		return refuse(CodeBadSignature, "signature: "+err.Error()+"; sign the statement with the present keys: moult key sign")
	case errors.Is(err, release.ErrStatementKnown), errors.Is(err, release.ErrStatementGap):
		return refuse(fleet.CodeConflict, "statement: "+err.Error()+"; look at `moult key list` and make the statement again")
	}
	return badRequest("statement: %v", err)
}
