package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/pem"
	"testing"
	"time"

	"go.uber.org/goleak"

	"moult/mesh/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	clusterID = "6f7c2a10-0000-4000-8000-000000000001"
	hostID    = "0b6d1d5e-4a0c-4c3e-9a0e-000000000002"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	key, err := identity.NewKey()
	must(t, err)
	return key
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func mustCA(t testing.TB, cluster string, now time.Time) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA(cluster, now)
	must(t, err)
	return ca
}

func mustIssue(t testing.TB, ca *identity.CA, id identity.Identity, key ed25519.PrivateKey, now time.Time, ttl time.Duration) []byte {
	t.Helper()
	text, err := ca.Issue(id, public(key), now, ttl)
	must(t, err)
	return text
}

func der(text []byte) []byte {
	block, _ := pem.Decode(text)
	return block.Bytes
}

// credentials makes a host of a cluster, without its files.
func credentials(t testing.TB, ca *identity.CA, id identity.Identity) identity.Credentials {
	t.Helper()
	key := mustKey(t)
	return identity.Credentials{
		Identity: id, Key: key, CAPEM: ca.CertPEM(), CertPEM: mustIssue(t, ca, id, key, time.Now(), time.Hour),
		Segment: "default", GossipKeys: [][]byte{bytes.Repeat([]byte{7}, 32)},
	}
}

func agent(host string) identity.Identity {
	return identity.Identity{Cluster: clusterID, HostID: host, Name: "web-1", Role: identity.RoleAgent}
}

func server(host string) identity.Identity {
	return identity.Identity{Cluster: clusterID, HostID: host, Name: "server-1", Role: identity.RoleServer}
}
