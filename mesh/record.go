package mesh

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"moult/mesh/identity"
)

// Phase is what a host's updater is doing.
type Phase string

// The phases of an update, as a host announces them.
const (
	PhaseIdle       Phase = "idle"
	PhaseFetching   Phase = "fetching"
	PhaseVerifying  Phase = "verifying"
	PhasePreflight  Phase = "preflight"
	PhaseRestarting Phase = "restarting"
	PhaseTrial      Phase = "trial"
	PhaseFailed     Phase = "failed"
	PhaseRolledBack Phase = "rolled_back"
	// PhaseUnknown stands for a phase that a newer version announced.
	PhaseUnknown Phase = "unknown"
)

// phases gives each phase its byte in the encoding. Append only.
var phases = []Phase{
	PhaseIdle, PhaseFetching, PhaseVerifying, PhasePreflight,
	PhaseRestarting, PhaseTrial, PhaseFailed, PhaseRolledBack,
}

// Bounds of a record's fields, in bytes, chosen so that the largest record fits
// into MaxRecord (guarded by a test).
const (
	MaxRecord     = 512
	maxID         = 36
	maxVersion    = 64
	maxPlatform   = 16
	maxSegment    = 32
	maxHolds      = 4
	maxExtension  = 64
	digestPrefix  = 8
	recordVersion = 1
	recordIDAt    = 2 // where the host id begins in the encoding
	recordDomain  = "moult record v1\x00"
)

// Bits of the first byte of the extension. What follows it is a later version's.
const extRenews = 1 << 0

// Flags of a record.
const (
	flagServer  = 1 << 0
	flagLeaving = 1 << 1
	knownFlags  = flagServer | flagLeaving
)

// Record is what a host says of itself. (Boot, Seq) orders a host's records.
type Record struct {
	HostID   string
	Boot     uint64 // number of the host's start
	Seq      uint64 // counts the records of one start, from 1
	Role     string // "agent" or "server"
	Leaving  bool   // the host says goodbye with this record
	Version  string // of the running binary
	Digest   string // first 16 hex digits of the running binary's sha256
	OS, Arch string
	Segments []string // the first is the home segment
	PeerPort uint16   // of the node port
	Phase    Phase
	JobID    string   // the job that Phase is about; may be empty
	Holds    []string // 16 hex digits each: further artifacts the host can serve
	Renews   bool     // the host signs its record anew every Timing.Renew, for relays
}

// SignedRecord is a record and the signed bytes it was read from.
type SignedRecord struct {
	Record
	Raw []byte
}

// HasArtifact tells whether the host says it can serve the artifact with this
// sha256 (64 hex digits): it runs it or holds it.
func (r Record) HasArtifact(digest string) bool {
	if len(digest) < 2*digestPrefix {
		return false
	}
	prefix := digest[:2*digestPrefix]
	return r.Digest == prefix || slices.Contains(r.Holds, prefix)
}

// Relay tells whether the host is in two or more segments.
func (r Record) Relay() bool { return len(r.Segments) > 1 }

// sameButSeq tells whether r says what o says, and only its number rose.
func (r Record) sameButSeq(o Record) bool {
	o.Seq = r.Seq
	return reflect.DeepEqual(r, o)
}

// newer tells whether r comes after o, both of the same host.
func (r Record) newer(o Record) bool {
	return r.Boot > o.Boot || r.Boot == o.Boot && r.Seq > o.Seq
}

// The encoding, big-endian, each text behind its length in one byte:
//
//	version 1 | flags 1 | host id | boot 8 | seq 8 | version | digest 8 | os | arch
//	| count, segments | peer port 2 | phase 1 | job id | count, holds 8 each
//	| extension: abilities 1 | signature 64
//
// The signature covers the domain, the cluster id and all that precedes it. A
// later version of moult puts new fields into the extension, which this one
// accepts unread: servers of mixed versions are the normal case in an update.

// Sign encodes and signs r for a cluster. It returns ErrMalformed (wrapped) when
// a field is out of bounds.
func (r Record) Sign(cluster string, key ed25519.PrivateKey) (SignedRecord, error) {
	body, err := r.encode()
	if err != nil {
		return SignedRecord{}, err
	}
	raw := slices.Concat(body, ed25519.Sign(key, recordMessage(cluster, body)))
	return SignedRecord{Record: r, Raw: raw}, nil
}

// Verify tells whether key signed r for the cluster.
func (r SignedRecord) Verify(cluster string, key ed25519.PublicKey) bool {
	if len(key) != ed25519.PublicKeySize || len(r.Raw) <= ed25519.SignatureSize {
		return false
	}
	cut := len(r.Raw) - ed25519.SignatureSize
	return ed25519.Verify(key, recordMessage(cluster, r.Raw[:cut]), r.Raw[cut:])
}

func recordMessage(cluster string, body []byte) []byte {
	var w writer
	w.raw([]byte(recordDomain))
	w.text8(cluster)
	w.raw(body)
	return w.b
}

func (r Record) check() error {
	bad := func(field string, value any) error {
		return fmt.Errorf("%w: %s %q", ErrMalformed, field, value)
	}
	switch {
	case !validID(r.HostID):
		return bad("host id", r.HostID)
	case r.JobID != "" && !validID(r.JobID):
		return bad("job id", r.JobID)
	case r.Role != string(identity.RoleAgent) && r.Role != string(identity.RoleServer):
		return bad("role", r.Role)
	case !printable(r.Version, maxVersion):
		return bad("version", r.Version)
	case !printable(r.OS, maxPlatform) || !printable(r.Arch, maxPlatform):
		return bad("platform", r.OS+"/"+r.Arch)
	case len(r.Segments) == 0 || len(r.Segments) > MaxSegments:
		return fmt.Errorf("%w: %d segments; want 1 to %d", ErrMalformed, len(r.Segments), MaxSegments)
	case len(r.Holds) > maxHolds:
		return fmt.Errorf("%w: %d artifacts held; at most %d are announced", ErrMalformed, len(r.Holds), maxHolds)
	case !validPrefix(r.Digest):
		return bad("digest", r.Digest)
	}
	for i, s := range r.Segments {
		if !validSegment(s) || slices.Contains(r.Segments[:i], s) {
			return bad("segment", s)
		}
	}
	for _, h := range r.Holds {
		if !validPrefix(h) {
			return bad("artifact", h)
		}
	}
	return nil
}

func (r Record) encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	phase := slices.Index(phases, r.Phase)
	if phase < 0 {
		return nil, fmt.Errorf("%w: phase %q", ErrMalformed, r.Phase)
	}
	var flags byte
	if r.Role == string(identity.RoleServer) {
		flags |= flagServer
	}
	if r.Leaving {
		flags |= flagLeaving
	}
	var w writer
	w.byte(recordVersion)
	w.byte(flags)
	w.text8(r.HostID)
	w.uint64(r.Boot)
	w.uint64(r.Seq)
	w.text8(r.Version)
	w.prefix(r.Digest)
	w.text8(r.OS)
	w.text8(r.Arch)
	w.byte(byte(len(r.Segments)))
	for _, s := range r.Segments {
		w.text8(s)
	}
	w.uint16(r.PeerPort)
	w.byte(byte(phase))
	w.text8(r.JobID)
	w.byte(byte(len(r.Holds)))
	for _, h := range r.Holds {
		w.prefix(h)
	}
	var extension string
	if r.Renews {
		extension = string([]byte{extRenews})
	}
	w.text8(extension)
	return w.b, nil
}

// DecodeRecord reads a signed record without verifying its signature. It
// returns ErrMalformed (wrapped) for anything that breaks a bound; it keeps a
// copy of raw.
func DecodeRecord(raw []byte) (SignedRecord, error) {
	if len(raw) > MaxRecord || len(raw) <= ed25519.SignatureSize {
		return SignedRecord{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(raw))
	}
	raw = bytes.Clone(raw)
	rd := reader{b: raw[:len(raw)-ed25519.SignatureSize]}
	var r Record
	if v := rd.byte(); v != recordVersion {
		return SignedRecord{}, fmt.Errorf("%w: format version %d is not known here", ErrMalformed, v)
	}
	flags := rd.byte()
	if flags&^byte(knownFlags) != 0 {
		return SignedRecord{}, fmt.Errorf("%w: flags %#x", ErrMalformed, flags)
	}
	r.Role = string(identity.RoleAgent)
	if flags&flagServer != 0 {
		r.Role = string(identity.RoleServer)
	}
	r.Leaving = flags&flagLeaving != 0
	r.HostID = rd.text8(maxID)
	r.Boot, r.Seq = rd.uint64(), rd.uint64()
	r.Version = rd.text8(maxVersion)
	r.Digest = rd.prefix()
	r.OS, r.Arch = rd.text8(maxPlatform), rd.text8(maxPlatform)
	for range rd.count(MaxSegments) {
		r.Segments = append(r.Segments, rd.text8(maxSegment))
	}
	r.PeerPort = rd.uint16()
	r.Phase = PhaseUnknown
	if p := int(rd.byte()); p < len(phases) {
		r.Phase = phases[p]
	}
	r.JobID = rd.text8(maxID)
	for range rd.count(maxHolds) {
		r.Holds = append(r.Holds, rd.prefix())
	}
	if ext := rd.text8(maxExtension); ext != "" {
		r.Renews = ext[0]&extRenews != 0
	}
	if rd.failed || len(rd.b) != 0 {
		return SignedRecord{}, fmt.Errorf("%w: truncated, or a field is too long", ErrMalformed)
	}
	if err := r.check(); err != nil {
		return SignedRecord{}, err
	}
	return SignedRecord{Record: r, Raw: raw}, nil
}

func validID(s string) bool      { return validName(s, maxID) }
func validSegment(s string) bool { return validName(s, maxSegment) }

func validName(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	return !strings.ContainsFunc(s, func(c rune) bool {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
			return false
		}
		return true
	})
}

func printable(s string, limit int) bool {
	return len(s) <= limit && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}

func validPrefix(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == digestPrefix && hex.EncodeToString(b) == s
}
