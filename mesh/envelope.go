package mesh

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"moult/mesh/identity"
)

const (
	envelopeVersion = 1
	envelopeDomain  = "moult envelope v1\x00"
	maxTopic        = 64
	maxCert         = 4096
	// maxEnvelope is the largest encoding of an envelope.
	maxEnvelope = 1 + 2*(1+maxID) + 1 + maxTopic + 16 + 4 + maxCert + 4 + MaxPayload + ed25519.SignatureSize
)

var (
	errEnvelopeMalformed  = errors.New("malformed envelope")
	errEnvelopeUnverified = errors.New("envelope is not verified")
	errEnvelopeReplayed   = errors.New("envelope was seen before")
)

// envelope is a message under its sender's signature. Relays pass raw on as it is.
//
//	version 1 | from | to | topic | boot 8 | seq 8 | certificate | payload | signature 64
//
// The signature covers the domain, the cluster id and all that precedes it.
// (Boot, seq) is the sender's own count of messages.
type envelope struct {
	from, to, topic string
	boot, seq       uint64
	cert, payload   []byte
	raw             []byte
}

func (e envelope) seal(cluster string, key ed25519.PrivateKey) envelope {
	var w writer
	w.b = make([]byte, 0, len(e.payload)+len(e.cert)+512)
	w.byte(envelopeVersion)
	w.text8(e.from)
	w.text8(e.to)
	w.text8(e.topic)
	w.uint64(e.boot)
	w.uint64(e.seq)
	w.bytes32(e.cert)
	w.bytes32(e.payload)
	e.raw = slices.Concat(w.b, ed25519.Sign(key, envelopeMessage(cluster, w.b)))
	return e
}

func envelopeMessage(cluster string, body []byte) []byte {
	var w writer
	w.b = make([]byte, 0, len(body)+128)
	w.raw([]byte(envelopeDomain))
	w.text8(cluster)
	w.raw(body)
	return w.b
}

func decodeEnvelope(raw []byte) (envelope, error) {
	if len(raw) <= ed25519.SignatureSize || len(raw) > maxEnvelope {
		return envelope{}, fmt.Errorf("%w: %d bytes", errEnvelopeMalformed, len(raw))
	}
	rd := reader{b: raw[:len(raw)-ed25519.SignatureSize]}
	if v := rd.byte(); v != envelopeVersion {
		return envelope{}, fmt.Errorf("%w: format version %d is not known here", errEnvelopeMalformed, v)
	}
	e := envelope{raw: raw}
	e.from, e.to, e.topic = rd.text8(maxID), rd.text8(maxID), rd.text8(maxTopic)
	e.boot, e.seq = rd.uint64(), rd.uint64()
	e.cert, e.payload = rd.bytes32(maxCert), rd.bytes32(MaxPayload)
	if rd.failed || len(rd.b) != 0 || !validID(e.from) || !validID(e.to) || e.topic == "" {
		return envelope{}, errEnvelopeMalformed
	}
	return e, nil
}

// envelopeVerifier decides whom a message is from.
type envelopeVerifier struct {
	cluster string
	certs   *identity.Verifier
	records recordVerifier
}

// open returns the identity that the sender's certificate proves, if that host
// signed the envelope and, where the enrolment is known, is still enrolled.
func (v envelopeVerifier) open(e envelope, now time.Time) (identity.Identity, error) {
	id, key, err := v.certs.Verify(e.cert, now)
	if err != nil {
		return identity.Identity{}, fmt.Errorf("%w: %w", errEnvelopeUnverified, err)
	}
	if id.HostID != e.from || id.Cluster != v.cluster {
		return identity.Identity{}, fmt.Errorf("%w: from %s, but the certificate is %s's", errEnvelopeUnverified, e.from, id.HostID)
	}
	cut := len(e.raw) - ed25519.SignatureSize
	if !ed25519.Verify(key, envelopeMessage(v.cluster, e.raw[:cut]), e.raw[cut:]) {
		return identity.Identity{}, fmt.Errorf("%w: %s did not sign it", errEnvelopeUnverified, e.from)
	}
	if v.records.removed(id.HostID) {
		return identity.Identity{}, fmt.Errorf("%w: %s was removed", errEnvelopeUnverified, id.HostID)
	}
	if v.records.keyOf != nil {
		if enrolled, ok := v.records.keyOf(id.HostID); !ok || !bytes.Equal(enrolled, key) {
			return identity.Identity{}, fmt.Errorf("%w: %s is not enrolled with this key", errEnvelopeUnverified, id.HostID)
		}
	}
	if v.records.roleOf != nil {
		if role, ok := v.records.roleOf(id.HostID); ok && role != id.Role {
			return identity.Identity{}, fmt.Errorf("%w: %s is enrolled as %s", errEnvelopeUnverified, id.HostID, role)
		}
	}
	return id, nil
}

const (
	// replayWindow is how many messages of one sender may arrive out of order.
	replayWindow = 1024
	// maxSenders bounds the senders remembered: over the years more hosts send
	// than are there at a time. The one that was silent longest is forgotten,
	// like all of them at a restart.
	maxSenders = 16384
)

// replayGuard refuses a message that was seen before. Messages may overtake
// each other (several pools, several relays), so it remembers the newest
// replayWindow numbers of each sender's present start.
type replayGuard struct {
	limit int // of senders

	mu      sync.Mutex
	senders map[string]*replayState
	uses    uint64
}

type replayState struct {
	used          uint64 // the guard's count at the last fresh message
	boot, highest uint64
	seen          [replayWindow / 64]uint64
}

func newReplayGuard(limit int) *replayGuard {
	return &replayGuard{limit: limit, senders: map[string]*replayState{}}
}

// fresh tells whether (boot, seq) of a verified sender is new, and notes it.
func (g *replayGuard) fresh(sender string, boot, seq uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s, ok := g.senders[sender]
	if !ok && len(g.senders) >= g.limit {
		g.forget()
	}
	if !ok || boot > s.boot {
		s = &replayState{boot: boot, highest: seq}
		g.senders[sender] = s
	} else if !s.advance(boot, seq) {
		return false
	}
	g.uses++
	s.used = g.uses
	s.mark(seq)
	return true
}

// forget drops the sender that was silent longest; the lock is held.
func (g *replayGuard) forget() {
	var oldest string
	for id, s := range g.senders {
		if oldest == "" || s.used < g.senders[oldest].used {
			oldest = id
		}
	}
	delete(g.senders, oldest)
}

// advance tells whether (boot, seq) was not seen yet, and moves the window up
// to it.
func (s *replayState) advance(boot, seq uint64) bool {
	switch {
	case boot < s.boot, seq+replayWindow <= s.highest:
		return false
	case seq > s.highest:
		if seq-s.highest >= replayWindow {
			s.seen = [replayWindow / 64]uint64{}
		} else {
			for n := s.highest + 1; n < seq; n++ {
				s.seen[n/64%uint64(len(s.seen))] &^= 1 << (n % 64)
			}
		}
		s.highest = seq
		return true
	}
	return s.seen[seq/64%uint64(len(s.seen))]&(1<<(seq%64)) == 0
}

func (s *replayState) mark(seq uint64) {
	s.seen[seq/64%uint64(len(s.seen))] |= 1 << (seq % 64)
}
