// Package order is what a server tells a host to do: signed with the server's
// key, bound to one host, one job and one index of the replicated log.
//
// The leader calls Seal after the dispatch is committed and sends the result
// again and again; the host calls Open, then Fence.Accept. A sealed order is
//
//	{"order": base64 of the order's JSON, "cert": DER, "sig": ed25519}
//
// and the signature is over "moult order 1\n" and the order's JSON, byte for
// byte. The certificate travels along; who signed is read out of it, never out
// of the order. A field of the order that is not known is ignored: servers are
// newer than the hosts they update. What an older host must not overlook takes a
// new number in the domain line, which older hosts refuse. Around the order there
// is nothing to ignore: its three fields have one spelling, so that no byte of a
// sealed order can be altered, nor added, unnoticed.
//
// Epoch and index are the fencing token, compared in this order. The index is that
// of the log entry behind the order. The epoch is 0, and not written, until the
// cluster is restored from a backup or recovered without a majority: then the log
// goes on from an earlier index, and the cluster enters a higher epoch. An order of
// an epoch carries the statement by which the cluster entered it, signed with the
// key of the cluster's CA; a server's certificate is not enough. A host remembers
// on disk the highest token it accepted (Fence); what is lower is stale and has no
// effect, whoever sends it and however often.
//
// A host from before there were epochs overlooks them and goes by the index alone.
// A restored log therefore begins far above where the lost one can have come to.
package order

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"moult/mesh/identity"
	"moult/updater/release"
)

// Why an order is refused. All are wrapped with what was found.
var (
	// ErrMalformed: the bytes are no order.
	ErrMalformed = errors.New("the order does not parse")
	// ErrUntrusted: no server of this cluster signed the order.
	ErrUntrusted = errors.New("the order is not signed by a server of this cluster")
	// ErrOtherHost: the order is for another host, or another cluster.
	ErrOtherHost = errors.New("the order is not for this host")
	// ErrExpired: the order came too late.
	ErrExpired = errors.New("the order expired")
	// ErrStale: the order's epoch and index are not above what was accepted before.
	ErrStale = errors.New("the order is older than one that was accepted before")
	// ErrRepeated: the order's job was accepted before.
	ErrRepeated = errors.New("the order's job was accepted before")
	// ErrFenceDamaged: which orders were accepted before cannot be told.
	ErrFenceDamaged = errors.New("the record of accepted orders cannot be read")
)

// What an order may ask for.
const (
	// ActionUpdate brings the host to the manifest's release.
	ActionUpdate = "update"
	// ActionStage has the host fetch and verify the manifest's artifact ahead of its
	// turn, and do nothing with it but what Order.Next says. It may be repeated, and counts for nothing once an
	// order of a higher token was accepted: see Fence.Check.
	ActionStage = "stage"
	// ActionDrop has the host delete what it staged of the manifest's release. As
	// ActionStage.
	ActionDrop = "drop"
)

// Limits of an order.
const (
	MaxSealedBytes = 1 << 20
	MaxLifetime    = 24 * time.Hour // from opening to Expires
	// MaxKeyStatements bounds the key statements that an order brings along.
	MaxKeyStatements = 4
	maxIDBytes       = 64
	maxStripes       = 16
	maxAncestors     = 8
)

// domain keeps a signature over an order from meaning anything else.
const domain = "moult order 1\n"

// Order is one order.
type Order struct {
	Cluster   string    `json:"cluster"`
	HostID    string    `json:"host_id"`
	JobID     string    `json:"job_id"` // 1 to 64 of a-z A-Z 0-9 . _ -, no dot first
	Attempt   int       `json:"attempt"`
	Action    string    `json:"action"`
	Version   string    `json:"version"` // that the manifest must name
	Manifest  []byte    `json:"manifest"`
	Signature []byte    `json:"signature"` // of the manifest, by a release key
	Epoch     uint64    `json:"epoch,omitempty"`
	Statement []byte    `json:"epoch_statement,omitempty"` // proves Epoch; see identity.EpochStatement
	Index     uint64    `json:"index"`                     // of the committed dispatch
	Expires   time.Time `json:"expires"`

	// KeyStatements are the newest changes of the release keys, oldest first, for a
	// host that has not heard of them. At most MaxKeyStatements.
	KeyStatements []release.SignedStatement `json:"key_statements,omitempty"`
	// Parents are for ActionStage: the ids of hosts that get the artifact at the same
	// time, by stripe, each list from the nearest on. A hint; the bytes are verified.
	Parents [][]string `json:"parents,omitempty"`
	// Spread is for ActionStage: the host begins at a moment within it that is drawn by
	// chance, so that those who are told at once don't begin at once. 0: not said.
	Spread time.Duration `json:"spread,omitempty"`
	// AwaitPatch is for ActionStage: a patch is being made for this host, and the
	// order comes again, without it, when it is there or not to be had.
	AwaitPatch bool `json:"await_patch,omitempty"`
	// Next is for ActionStage: this host's turn comes next. What it has staged it may
	// verify and ask for its version, so that its turn need not.
	Next bool `json:"next,omitempty"`
	// FromManifest and FromSignature are of the release that the host seems to run:
	// where the manifest limits what it may replace, and the host does not know its
	// own number, they prove it.
	FromManifest  []byte `json:"from_manifest,omitempty"`
	FromSignature []byte `json:"from_signature,omitempty"`
}

type sealed struct {
	Order       []byte `json:"order"` // JSON of an Order
	Certificate []byte `json:"cert"`  // DER, of the server that signed
	Signature   []byte `json:"sig"`   // ed25519, over domain and Order
}

// Seal signs an order with a server's key. It refuses an order that no host
// would open.
func Seal(o Order, key ed25519.PrivateKey, certDER []byte) ([]byte, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("the server's key is %d bytes, not %d", len(key), ed25519.PrivateKeySize)
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, fmt.Errorf("the server's certificate: %w", err)
	}
	if !key.Public().(ed25519.PublicKey).Equal(cert.PublicKey) {
		return nil, errors.New("the server's certificate is not for its key")
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(sealed{Order: text, Certificate: certDER, Signature: ed25519.Sign(key, signed(text))})
	if err != nil {
		return nil, err
	}
	if len(out) > MaxSealedBytes {
		return nil, fmt.Errorf("the order is %d bytes; at most %d", len(out), MaxSealedBytes)
	}
	return out, nil
}

// Open returns an order if a server of the verifier's cluster signed it, for
// this host, and it has not expired. What the manifest in it is worth, and
// whether the order is a repetition, it leaves to release.Verify and Fence. The
// error wraps ErrMalformed, ErrUntrusted, ErrOtherHost or ErrExpired.
func Open(b []byte, v *identity.Verifier, hostID string, now time.Time) (Order, error) {
	if len(b) > MaxSealedBytes {
		return Order{}, fmt.Errorf("%w: it is %d bytes, at most %d are read", ErrMalformed, len(b), MaxSealedBytes)
	}
	var s sealed
	if err := decode(b, &s); err != nil {
		return Order{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if again, err := json.Marshal(s); err != nil || !bytes.Equal(again, b) {
		return Order{}, fmt.Errorf("%w: it is not spelt as a server spells it", ErrMalformed)
	}
	id, pub, err := v.Verify(s.Certificate, now)
	if err != nil {
		return Order{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if id.Role != identity.RoleServer {
		return Order{}, fmt.Errorf("%w: host %s signed it, whose role is %s", ErrUntrusted, id.HostID, id.Role)
	}
	if !ed25519.Verify(pub, signed(s.Order), s.Signature) {
		return Order{}, fmt.Errorf("%w: the signature does not hold", ErrUntrusted)
	}
	var o Order
	if err := decode(s.Order, &o); err != nil {
		return Order{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if o.Cluster != id.Cluster {
		return Order{}, fmt.Errorf("%w: it is for cluster %q", ErrOtherHost, o.Cluster)
	}
	if o.HostID != hostID {
		return Order{}, fmt.Errorf("%w: it is for host %q", ErrOtherHost, o.HostID)
	}
	if err := o.validate(); err != nil {
		return Order{}, err
	}
	if err := o.provesEpoch(v); err != nil {
		return Order{}, err
	}
	if err := o.inTime(now); err != nil {
		return Order{}, err
	}
	return o, nil
}

func signed(text []byte) []byte { return append([]byte(domain), text...) }

func (o Order) validate() error {
	switch {
	case o.Cluster == "" || o.HostID == "":
		return fmt.Errorf("%w: it names no cluster or no host", ErrMalformed)
	case !validJobID(o.JobID):
		return fmt.Errorf("%w: its job id %.80q is not 1 to %d of a-z A-Z 0-9 . _ -, a dot not first", ErrMalformed, o.JobID, maxIDBytes)
	case o.Index == 0 || o.Attempt < 1:
		return fmt.Errorf("%w: it has no index or no attempt", ErrMalformed)
	case (o.Epoch == 0) != (len(o.Statement) == 0):
		return fmt.Errorf("%w: it has an epoch or a statement of one, not both", ErrMalformed)
	case o.Expires.IsZero():
		return fmt.Errorf("%w: it does not say until when it is good", ErrMalformed)
	case o.Action != ActionUpdate && o.Action != ActionStage && o.Action != ActionDrop:
		return fmt.Errorf("%w: the action %q is not known here; this host runs an older version than its servers", ErrMalformed, o.Action)
	case o.Version == "" || len(o.Manifest) == 0 || len(o.Signature) == 0:
		return fmt.Errorf("%w: it carries no signed release", ErrMalformed)
	case !o.validParents():
		return fmt.Errorf("%w: its parents are more than %d lists of %d ids, or not for staging", ErrMalformed, maxStripes, maxAncestors)
	case len(o.KeyStatements) > MaxKeyStatements:
		return fmt.Errorf("%w: it carries %d key statements, at most %d are read", ErrMalformed, len(o.KeyStatements), MaxKeyStatements)
	}
	return nil
}

func (o Order) validParents() bool {
	if len(o.Parents) > maxStripes || len(o.Parents) > 0 && o.Action != ActionStage {
		return false
	}
	return !slices.ContainsFunc(o.Parents, func(ids []string) bool {
		return len(ids) > maxAncestors || slices.ContainsFunc(ids, func(id string) bool { return id == "" || len(id) > maxIDBytes })
	})
}

// provesEpoch: only the cluster's CA lets it into an epoch.
func (o Order) provesEpoch(v *identity.Verifier) error {
	if o.Epoch == 0 {
		return nil
	}
	proven, err := v.VerifyEpoch(o.Statement)
	if err != nil {
		return fmt.Errorf("%w: its epoch %d is not proven: %w", ErrUntrusted, o.Epoch, err)
	}
	if proven != o.Epoch {
		return fmt.Errorf("%w: it is of epoch %d, its statement of %d", ErrUntrusted, o.Epoch, proven)
	}
	return nil
}

// validJobID: the id becomes part of a file's name on the host.
func validJobID(id string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	return id != "" && len(id) <= maxIDBytes && id[0] != '.' && strings.Trim(id, letters) == ""
}

// inTime: an order lives for minutes, so one that is far from its expiry in
// either direction tells of a clock that is wrong.
func (o Order) inTime(now time.Time) error {
	const clocks = "are the clocks of this host and the servers right?"
	if !now.Before(o.Expires) {
		return fmt.Errorf("%w at %s; %s", ErrExpired, o.Expires.UTC().Format(time.RFC3339), clocks)
	}
	if o.Expires.Sub(now) > MaxLifetime {
		return fmt.Errorf("%w: it is good until %s, longer than the %s any order may live; %s",
			ErrMalformed, o.Expires.UTC().Format(time.RFC3339), MaxLifetime, clocks)
	}
	return nil
}

// decode decodes one JSON value with nothing after it.
func decode(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there are bytes after its end")
	}
	return nil
}
