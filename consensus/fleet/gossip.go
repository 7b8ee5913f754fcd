package fleet

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// RotationStage is how far the change of a segment's gossip keys is.
type RotationStage string

// The stages of a rotation. It goes on when the hosts have confirmed the keys of
// the present one.
const (
	RotationNone       RotationStage = ""
	RotationInstalling RotationStage = "installing" // every host gets the new key; the old one encrypts
	RotationUsing      RotationStage = "using"      // the new key encrypts; the old one is still read
)

// GossipRing is the gossip keys of a segment whose keys were changed. It holds
// secrets, as Cluster does. A segment without one has the keys that are derived of
// the cluster's.
type GossipRing struct {
	Segment  string        `json:"segment"`
	Keys     [][]byte      `json:"keys"`     // 32 bytes each; the first one encrypts, the last one is the new one
	Revision uint64        `json:"revision"` // rises with each change of Keys
	Stage    RotationStage `json:"stage,omitempty"`
	Done     int           `json:"done"` // rotations that came to their end

	Reason      string     `json:"reason,omitempty"` // of the last rotation
	StartedAt   time.Time  `json:"started_at"`
	StartedBy   string     `json:"started_by"`
	CompletedAt *time.Time `json:"completed_at,omitempty"`
}

// SegmentKey is a new gossip key for a segment.
type SegmentKey struct {
	Segment string `json:"segment"`
	Key     []byte `json:"key"` // 32 bytes
	// Base are the keys that the segment has had so far, where they never changed:
	// they are derived, which is not for the state to do.
	Base [][]byte `json:"base,omitempty"`
}

// GossipRings returns the segments whose keys were changed, by name.
func (v View) GossipRings() []GossipRing {
	return all[GossipRing](v.txn, false, tableGossipRings, "id")
}

// GossipRing returns a segment's keys, if they were changed.
func (v View) GossipRing(segment string) (GossipRing, bool) {
	return first[GossipRing](v.txn, tableGossipRings, "id", segment)
}

// Segments returns the segments that hosts are in, by name.
func (v View) Segments() []string {
	var names []string
	for _, h := range v.Hosts() {
		names = append(names, h.Segments()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func applyGossipRotationBegun(t *tx, c GossipRotationBegun) *Error {
	if len(c.Keys) == 0 {
		return refuse(CodeBadRequest, "keys is empty; name the segments whose gossip keys shall change")
	}
	var names []string
	for _, k := range c.Keys {
		if slices.Contains(names, k.Segment) {
			return refuse(CodeBadRequest, "keys: segment %s stands there twice", k.Segment)
		}
		names = append(names, k.Segment)
		if r, ok := t.view().GossipRing(k.Segment); ok && r.Stage != RotationNone {
			return refuse(CodeRotationRunning, "the gossip keys of segment %s are being changed already; watch it with: moult gossip status", k.Segment)
		}
		if refused := t.beginRotation(k, c.Reason); refused != nil {
			return refused
		}
	}
	t.audit("gossip keys of "+strings.Join(names, ", "), "a new key goes to all hosts"+withReason(c.Reason))
	return nil
}

func withReason(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// beginRotation adds a new key to a segment's. One that is under way begins anew
// with this key: whoever was removed since may know the one that it was about.
func (t *tx) beginRotation(k SegmentKey, reason string) *Error {
	r, ok := t.view().GossipRing(k.Segment)
	if !ok {
		if !validSegment(k.Segment) {
			return refuse(CodeBadRequest, "gossip key: segment %q: %s", clip(k.Segment, MaxNameBytes), segmentRule)
		}
		if len(t.view().GossipRings()) >= t.bounds.rings {
			return refuse(CodeLimitReached, "the gossip keys of %d segments were changed, and no more are kept", t.bounds.rings)
		}
		r = GossipRing{Segment: k.Segment, Keys: k.Base}
	}
	keys := slices.Clone(r.Keys)
	if r.Stage == RotationInstalling { // nobody encrypts with that one yet
		keys = keys[:len(keys)-1]
	}
	if len(keys) >= MaxRingKeys {
		keys = append(keys[:MaxRingKeys-2], keys[len(keys)-1])
	}
	if len(keys) == 0 {
		return refuse(CodeBadRequest, "gossip key: the keys that segment %s has so far are missing", k.Segment)
	}
	for _, key := range append(slices.Clone(keys), k.Key) {
		if len(key) != gossipKeyBytes {
			return refuse(CodeBadRequest, "gossip key: one of segment %s has %d bytes, not %d", k.Segment, len(key), gossipKeyBytes)
		}
	}
	if slices.ContainsFunc(keys, func(old []byte) bool { return bytes.Equal(old, k.Key) }) {
		return refuse(CodeBadRequest, "gossip key: the new one of segment %s is one that it has", k.Segment)
	}
	keys = append(keys, slices.Clone(k.Key))
	r.Keys = keys
	r.Revision, r.Stage, r.Reason = t.index, RotationInstalling, clip(reason, MaxDetailBytes)
	r.StartedAt, r.StartedBy, r.CompletedAt = t.at, t.actor, nil
	t.put(tableGossipRings, r)
	t.touch("gossip")
	return nil
}

func applyGossipRotationAdvanced(t *tx, c GossipRotationAdvanced) *Error {
	r, ok := t.view().GossipRing(c.Segment)
	switch {
	case !ok || r.Stage == RotationNone:
		return refuse(CodeNotRunning, "the gossip keys of segment %q are not being changed; begin with: moult gossip rotate", clip(c.Segment, MaxNameBytes))
	case r.Revision != c.Revision:
		return refuse(CodeConflict, "the change of the gossip keys of segment %s has gone on meanwhile; look at it with: moult gossip status", c.Segment)
	}
	told := "all hosts have the new key; it encrypts from now on"
	if r.Stage == RotationInstalling {
		last := len(r.Keys) - 1
		r.Keys = slices.Concat(r.Keys[last:], r.Keys[:last])
		r.Stage = RotationUsing
	} else {
		at := t.at
		told = "all hosts use the new key; the old one is good for nothing any more"
		r.Keys, r.Stage, r.CompletedAt = r.Keys[:1:1], RotationNone, &at
		r.Done++
	}
	r.Revision = t.index
	t.put(tableGossipRings, r)
	t.touch("gossip")
	if c.Forced {
		told = fmt.Sprintf("forced, without waiting for %d hosts: %s", len(c.Missing), strings.Join(c.Missing, ", "))
	}
	t.audit("gossip keys of "+r.Segment, told)
	return nil
}
