package mesh

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"moult/mesh/identity"
)

func fixedKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)) }

// largestRecord has every field at its limit.
func largestRecord() Record {
	segments := make([]string, MaxSegments)
	for i := range segments {
		segments[i] = strings.Repeat(string(rune('a'+i)), maxSegment)
	}
	return Record{
		HostID: strings.Repeat("h", maxID), Boot: math.MaxUint64, Seq: math.MaxUint64, Role: string(identity.RoleServer), Leaving: true,
		Version: strings.Repeat("v", maxVersion), Digest: strings.Repeat("f", 16), OS: strings.Repeat("o", maxPlatform), Arch: strings.Repeat("a", maxPlatform),
		Segments: segments, PeerPort: math.MaxUint16, Phase: PhaseRolledBack, JobID: strings.Repeat("j", maxID),
		Holds: slices.Repeat([]string{strings.Repeat("e", 16)}, maxHolds), Renews: true,
	}
}

func smallRecord() Record {
	return Record{HostID: "a1", Boot: 1, Seq: 1, Role: "agent", Digest: strings.Repeat("0", 16), Segments: []string{"default"}, Phase: PhaseIdle}
}

func TestLargestRecordFits(t *testing.T) {
	s, err := largestRecord().Sign(testCluster, fixedKey())
	must(t, err)
	// Later versions write more into the extension, which must fit too.
	if size := len(s.Raw) + maxExtension - 1; size > MaxRecord {
		t.Errorf("the largest record takes %d bytes of %d", size, MaxRecord)
	}
	got, err := DecodeRecord(s.Raw)
	must(t, err)
	if !reflect.DeepEqual(got.Record, s.Record) {
		t.Errorf("read back %+v", got.Record)
	}
}

func TestRecordEncodingIsDeterministicAndSigned(t *testing.T) {
	for _, r := range []Record{largestRecord(), smallRecord()} {
		a, err := r.Sign(testCluster, fixedKey())
		must(t, err)
		b, err := r.Sign(testCluster, fixedKey())
		must(t, err)
		if !bytes.Equal(a.Raw, b.Raw) {
			t.Error("two encodings differ")
		}
		pub := fixedKey().Public().(ed25519.PublicKey)
		if !a.Verify(testCluster, pub) {
			t.Error("its own signature does not verify")
		}
		if a.Verify("another-cluster", pub) {
			t.Error("the signature counts in another cluster")
		}
		for i := range a.Raw {
			forged := SignedRecord{Raw: bytes.Clone(a.Raw)}
			forged.Raw[i] ^= 1
			if forged.Verify(testCluster, pub) {
				t.Fatalf("verifies with byte %d changed", i)
			}
		}
	}
}

func TestRecordBounds(t *testing.T) {
	for name, spoil := range map[string]func(*Record){
		"no host id":          func(r *Record) { r.HostID = "" },
		"long host id":        func(r *Record) { r.HostID = strings.Repeat("h", maxID+1) },
		"slash in host id":    func(r *Record) { r.HostID = "a/b" },
		"long version":        func(r *Record) { r.Version = strings.Repeat("v", maxVersion+1) },
		"control in version":  func(r *Record) { r.Version = "1\x1b[2J" },
		"long platform":       func(r *Record) { r.OS = strings.Repeat("o", maxPlatform+1) },
		"no segment":          func(r *Record) { r.Segments = nil },
		"too many segments":   func(r *Record) { r.Segments = []string{"a", "b", "c", "d", "e"} },
		"segment twice":       func(r *Record) { r.Segments = []string{"a", "a"} },
		"long segment":        func(r *Record) { r.Segments = []string{strings.Repeat("s", maxSegment+1)} },
		"too many held":       func(r *Record) { r.Holds = slices.Repeat([]string{strings.Repeat("e", 16)}, maxHolds+1) },
		"upper-case digest":   func(r *Record) { r.Digest = strings.Repeat("F", 16) },
		"short digest":        func(r *Record) { r.Digest = "ff" },
		"unknown phase":       func(r *Record) { r.Phase = "dancing" },
		"unknown role":        func(r *Record) { r.Role = "king" },
		"job id with newline": func(r *Record) { r.JobID = "a\nb" },
	} {
		r := smallRecord()
		spoil(&r)
		if _, err := r.Sign(testCluster, fixedKey()); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A later version may add an extension and phases; this one must still see the host.
func TestRecordOfALaterVersionIsRead(t *testing.T) {
	r := smallRecord()
	body, err := r.encode()
	must(t, err)
	body = append(body[:len(body)-1], 3, 'n', 'e', 'w')
	raw := slices.Concat(body, ed25519.Sign(fixedKey(), recordMessage(testCluster, body)))
	got, err := DecodeRecord(raw)
	must(t, err)
	if !got.Verify(testCluster, fixedKey().Public().(ed25519.PublicKey)) || got.HostID != "a1" {
		t.Errorf("got %+v", got.Record)
	}
	known, err := r.Sign(testCluster, fixedKey())
	must(t, err)
	// phase, empty job id, no artifacts, no extension, signature
	known.Raw[len(known.Raw)-ed25519.SignatureSize-4] = 200
	if got, err = DecodeRecord(known.Raw); err != nil || got.Phase != PhaseUnknown {
		t.Errorf("phase %q, %v", got.Phase, err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, r := range []Record{largestRecord(), smallRecord()} {
		s, err := r.Sign(testCluster, fixedKey())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(s.Raw)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := DecodeRecord(raw)
		if err != nil {
			return
		}
		if err := s.check(); err != nil {
			t.Fatalf("decoded a record out of bounds: %v", err)
		}
		if s.Phase == PhaseUnknown {
			return
		}
		body, err := s.encode()
		must(t, err)
		// Canonical but for the extension, which is not kept.
		if cut := len(body) - 1; !bytes.Equal(body[:cut], s.Raw[:cut]) {
			t.Fatalf("two encodings of one record: %x, %x", body, s.Raw)
		}
	})
}

func FuzzDecodeMessages(f *testing.F) {
	e := envelope{from: "s1", to: "a1", topic: "order", boot: 1, seq: 1, cert: []byte("cert"), payload: []byte("payload")}.seal(testCluster, fixedKey())
	f.Add(e.raw)
	f.Add(relayHeader{id: 1, budget: 1, visited: []string{"a"}}.encode(e.raw)[1:])
	rec, err := smallRecord().Sign(testCluster, fixedKey())
	if err != nil {
		f.Fatal(err)
	}
	var w writer
	report{observer: "r1", boot: 1, version: 1, segment: "default", alive: true, ip: []byte{10, 0, 0, 1}, record: rec}.encode(&w)
	f.Add(w.b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := decodeEnvelope(b); err == nil && (len(e.payload) > MaxPayload || !validID(e.to)) {
			t.Fatalf("envelope out of bounds: %+v", e)
		}
		if e, err := decodeEnvelope(b); err == nil {
			again := e.seal(testCluster, fixedKey()).raw
			if cut := len(b) - ed25519.SignatureSize; len(again) != len(b) || !bytes.Equal(again[:cut], b[:cut]) {
				t.Fatalf("two encodings of one envelope: %x, %x", again, b)
			}
		}
		if h, _, err := decodeRelay(b); err == nil && len(h.visited) > MaxHops {
			t.Fatalf("%d hops", len(h.visited))
		}
		rd := &reader{b: b}
		if s, err := decodeReport(rd); err == nil && !validSegment(s.segment) {
			t.Fatalf("sighting out of bounds: %+v", s)
		}
	})
}
