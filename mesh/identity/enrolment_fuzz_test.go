package identity

import (
	"crypto/ed25519"
	"encoding/json"
	"testing"
	"time"
)

// A server's answer to a new host: the host keeps nothing that it cannot live by.
func FuzzEnrolment(f *testing.F) {
	dir := f.TempDir()
	s, err := OpenStore(dir)
	if err != nil {
		f.Fatal(err)
	}
	host, key, err := s.HostKey()
	if err != nil {
		f.Fatal(err)
	}
	now := time.Now()
	ca, err := NewCA("c1", now)
	if err != nil {
		f.Fatal(err)
	}
	id := Identity{Cluster: "c1", HostID: host, Name: "a", Role: RoleAgent}
	cert, err := ca.Issue(id, key.Public().(ed25519.PublicKey), now, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(Enrolment{Identity: id, CertPEM: cert, CAPEM: ca.CertPEM(), Segment: "default", GossipKeys: [][]byte{make([]byte, gossipKeyBytes)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"cert":"LS0t","ca":"LS0t"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var e Enrolment
		if json.Unmarshal(text, &e) != nil || e.check(host, key, now) != nil {
			return
		}
		v, err := NewVerifier(e.Cluster, e.CAPEM)
		if err != nil || e.HostID != host || e.Segment == "" || len(e.GossipKeys) == 0 {
			t.Fatalf("kept: %s, %v", e, err)
		}
		block, err := parseCertificate(e.CertPEM)
		if err != nil {
			t.Fatal(err)
		}
		if got, public, err := v.Verify(block.Raw, now); err != nil || got != e.Identity || !public.Equal(key.Public()) {
			t.Fatalf("kept: %s, %v", got, err)
		}
	})
}

// What a peer shows as its certificate.
func FuzzCertificate(f *testing.F) {
	now := time.Now()
	ca, err := NewCA("c1", now)
	if err != nil {
		f.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	text, err := ca.Issue(Identity{Cluster: "c1", HostID: "0b6d1d5e-4a0c-4c3e-9a0e-000000000002", Name: "a", Role: RoleAgent}, key.Public().(ed25519.PublicKey), now, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	good, err := parseCertificate(text)
	if err != nil {
		f.Fatal(err)
	}
	own, err := parseCertificate(ca.CertPEM())
	if err != nil {
		f.Fatal(err)
	}
	v, err := NewVerifier("c1", ca.CertPEM())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.Raw)
	f.Add(own.Raw)
	f.Add([]byte("0"))
	f.Fuzz(func(t *testing.T, der []byte) {
		if id, _, err := v.Verify(der, now); err == nil && (id.Role != RoleAgent || id.Cluster != "c1") {
			t.Fatalf("believed: %s", id)
		}
	})
}
