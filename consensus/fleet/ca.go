package fleet

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// CAStage is how far the change of the cluster's CA is.
type CAStage string

// The stages of a change of the CA. Each is committed before anybody acts on it, and
// the next one is for a person to take, once the hosts have followed.
const (
	CAStageNone     CAStage = ""
	CAStagePrepared CAStage = "prepared" // all hosts get to trust the new CA; the old one signs
	CAStageSwitched CAStage = "switched" // the new CA signs, hosts renew under it; the old one is still trusted
)

// CARotation is the last change of the CA. It holds a secret while it is prepared.
type CARotation struct {
	Stage  CAStage `json:"stage,omitempty"`
	Number uint64  `json:"number"`        // of the new CA; the first one is 0
	Cert   []byte  `json:"cert"`          // the new CA's, PEM
	Key    []byte  `json:"key,omitempty"` // while prepared; then it is the cluster's
	Old    []byte  `json:"old,omitempty"` // the old CA's certificate, PEM, until it is retired

	Reason      string     `json:"reason,omitempty"`
	StartedAt   time.Time  `json:"started_at"`
	StartedBy   string     `json:"started_by"`
	SwitchedAt  *time.Time `json:"switched_at,omitempty"`
	CompletedAt *time.Time `json:"completed_at,omitempty"`

	// GossipDone is, by segment, how often its gossip keys had been changed when the
	// new CA began to sign. They have to be once more before the old one is retired:
	// whoever has its key had the state, and in it the gossip keys.
	GossipDone map[string]int `json:"gossip_done,omitempty"`
}

// CACert is a CA's certificate with its number.
type CACert struct {
	Number uint64
	Cert   []byte // PEM
}

// TrustedCAs returns the CAs that hosts shall trust, by number.
func (c Cluster) TrustedCAs() []CACert {
	r := c.CARotation
	switch {
	case r != nil && r.Stage == CAStagePrepared:
		return []CACert{{c.CANumber, c.CACert}, {r.Number, r.Cert}}
	case r != nil && r.Stage == CAStageSwitched:
		return []CACert{{r.Number - 1, r.Old}, {r.Number, c.CACert}}
	}
	return []CACert{{c.CANumber, c.CACert}}
}

// GossipRoot is what the gossip keys of segments are derived of that were never
// changed: the CA's key, and while the CA is changed the old one's.
func (c Cluster) GossipRoot() []byte {
	if len(c.GossipCAKey) > 0 {
		return c.GossipCAKey
	}
	return c.CAKey
}

// GossipToChange returns the segments with hosts whose gossip keys have to be changed
// before the old CA is retired, by name.
func (v View) GossipToChange() (segments []string) {
	cluster, _ := v.Cluster()
	r := cluster.CARotation
	if r == nil || r.Stage != CAStageSwitched {
		return nil
	}
	for _, name := range v.Segments() {
		if ring, ok := v.GossipRing(name); !ok || ring.Stage != RotationNone || ring.Done <= r.GossipDone[name] {
			segments = append(segments, name)
		}
	}
	return segments
}

func applyCARotationBegun(t *tx, c CARotationBegun) *Error {
	m := t.view().meta()
	switch {
	case m.Cluster.ID == "":
		return refuse(CodeConflict, "there is no cluster yet; its first entry names the CA")
	case m.Cluster.CARotation != nil && m.Cluster.CARotation.Stage != CAStageNone:
		return refuse(CodeRotationRunning, "the CA is being changed already; go on with: moult ca rotate")
	case c.Number != m.Cluster.CANumber+1:
		return refuse(CodeConflict, "number is %d; the CA was changed %d times, so the next one is number %d", c.Number, m.Cluster.CANumber, m.Cluster.CANumber+1)
	}
	for _, b := range []struct {
		field string
		bytes []byte
	}{{"cert", c.Cert}, {"key", c.Key}, {"succession", c.Succession}} {
		if len(b.bytes) == 0 || len(b.bytes) > MaxCABytes {
			return refuse(CodeBadRequest, "%s is %d bytes; give 1 to %d", b.field, len(b.bytes), MaxCABytes)
		}
	}
	m.Cluster.CARotation = &CARotation{
		Stage: CAStagePrepared, Number: c.Number, Cert: c.Cert, Key: c.Key,
		Reason: clip(c.Reason, MaxDetailBytes), StartedAt: t.at, StartedBy: t.actor,
	}
	// A copy: older views still hold the list as it was.
	m.Cluster.CASuccessions = append(slices.Clone(m.Cluster.CASuccessions), c.Succession)
	if n := len(m.Cluster.CASuccessions); n > MaxCASuccessions {
		m.Cluster.CASuccessions = m.Cluster.CASuccessions[n-MaxCASuccessions:]
	}
	t.put(tableMeta, m)
	t.touch("cluster", "ca")
	t.audit(fmt.Sprintf("CA %d", c.Number), "prepared: all hosts get to trust the new CA"+withReason(c.Reason))
	return nil
}

// caRotation returns the change of the CA that is at a stage.
func (t *tx) caRotation(number uint64, stage CAStage) (CARotation, *Error) {
	cluster, _ := t.view().Cluster()
	r := cluster.CARotation
	switch {
	case r == nil || r.Stage == CAStageNone:
		return CARotation{}, refuse(CodeNotRunning, "the CA is not being changed; begin with: moult ca rotate")
	case r.Number != number || r.Stage != stage:
		return CARotation{}, refuse(CodeConflict, "the change of the CA has gone on meanwhile: CA %d is %s; look at it with: moult ca status", r.Number, r.Stage)
	}
	return *r, nil
}

func applyCASwitched(t *tx, c CASwitched) *Error {
	r, refused := t.caRotation(c.Number, CAStagePrepared)
	if refused != nil {
		return refused
	}
	m := t.view().meta()
	if (m.Cluster.Epoch == 0) != (len(c.EpochStatement) == 0) || len(c.EpochStatement) > MaxStatementBytes {
		return refuse(CodeBadRequest, "epoch_statement is %d bytes; give the new CA's on epoch %d, of at most %d, or none for epoch 0", len(c.EpochStatement), m.Cluster.Epoch, MaxStatementBytes)
	}
	for _, ring := range t.view().GossipRings() {
		if ring.Stage != RotationNone {
			return refuse(CodeRotationRunning, "the gossip keys of segment %s are being changed; go on when that is done: moult gossip status", ring.Segment)
		}
	}
	at := t.at
	r.Stage, r.SwitchedAt, r.Old, r.Key = CAStageSwitched, &at, m.Cluster.CACert, nil
	for _, ring := range t.view().GossipRings() {
		if r.GossipDone == nil { // a snapshot brings an empty one back as nil
			r.GossipDone = map[string]int{}
		}
		r.GossipDone[ring.Segment] = ring.Done
	}
	m.Cluster.GossipCAKey = m.Cluster.CAKey
	m.Cluster.CACert, m.Cluster.CAKey, m.Cluster.CANumber = r.Cert, m.Cluster.CARotation.Key, r.Number
	m.Cluster.EpochStatement = c.EpochStatement
	m.Cluster.CARotation = &r
	t.put(tableMeta, m)
	t.touch("cluster", "ca")
	t.audit(fmt.Sprintf("CA %d", c.Number), "the new CA signs from now on"+without(c.Forced, c.Missing))
	return nil
}

func without(forced bool, missing []string) string {
	if !forced {
		return ""
	}
	return fmt.Sprintf("; forced, without waiting for %d hosts: %s", len(missing), strings.Join(missing, ", "))
}

func applyCARetired(t *tx, c CARetired) *Error {
	r, refused := t.caRotation(c.Number, CAStageSwitched)
	if refused != nil {
		return refused
	}
	switch {
	case len(c.Retirement) == 0 || len(c.Retirement) > MaxCABytes:
		return refuse(CodeBadRequest, "retirement is %d bytes; give 1 to %d", len(c.Retirement), MaxCABytes)
	case len(c.GossipKey) != gossipKeyBytes:
		return refuse(CodeBadRequest, "gossip_key has %d bytes, not %d", len(c.GossipKey), gossipKeyBytes)
	}
	if segments := t.view().GossipToChange(); len(segments) > 0 {
		return refuse(CodeConflict, "the gossip keys of %s have not been changed since the new CA signs, and whoever has the old CA's key may have them; change them with: moult gossip rotate", strings.Join(segments, ", "))
	}
	for _, j := range t.view().OpenJobs() {
		if j.Status == JobRunning {
			return refuse(CodeConflict, "the update of %s is running, by an order of a certificate that may be of the old CA; go on when it has ended", j.HostName)
		}
	}
	m := t.view().meta()
	at := t.at
	r.Stage, r.CompletedAt, r.Old, r.GossipDone = CAStageNone, &at, nil, nil
	m.Cluster.CARotation = &r
	m.Cluster.CARetirement = c.Retirement
	// Segments that nobody was in get keys that owe nothing to the old CA's state.
	m.Cluster.GossipCAKey, m.Cluster.GossipKeys = nil, [][]byte{c.GossipKey}
	t.put(tableMeta, m)
	t.touch("cluster", "ca")
	t.audit(fmt.Sprintf("CA %d", c.Number), "the old CA is retired: nobody trusts it any more"+without(c.Forced, c.Missing))
	return nil
}

// tokenOfRetiredCA tells whether a join token was made under a CA that is retired.
func (v View) tokenOfRetiredCA(k JoinToken) bool {
	cluster, _ := v.Cluster()
	return k.CANumber < cluster.TrustedCAs()[0].Number
}
