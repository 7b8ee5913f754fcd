package order

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
	"moult/updater/release"
)

const (
	cluster = "cluster-1"
	host    = "agent-1"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// signer is a host with a certificate: a server, or somebody who is none.
type signer struct {
	key  ed25519.PrivateKey
	cert []byte // DER
}

func mustCA(t testing.TB, id string) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA(id, now)
	must(t, err)
	return ca
}

func mustSigner(t testing.TB, ca *identity.CA, id identity.Identity, ttl time.Duration) signer {
	t.Helper()
	key, err := identity.NewKey()
	must(t, err)
	text, err := ca.Issue(id, publicKeyOf(key), now, ttl)
	must(t, err)
	return signer{key, derOf(text)}
}

func publicKeyOf(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func derOf(certPEM []byte) []byte {
	block, _ := pem.Decode(certPEM)
	return block.Bytes
}

func server(id string) identity.Identity {
	return identity.Identity{Cluster: id, HostID: "server-1", Name: "s", Role: identity.RoleServer}
}

func mustVerifier(t testing.TB, id string, ca *identity.CA) *identity.Verifier {
	t.Helper()
	v, err := identity.NewVerifier(id, ca.CertPEM())
	must(t, err)
	return v
}

func goodOrder() Order {
	return Order{
		Cluster: cluster, HostID: host, JobID: "job-1", Attempt: 1, Action: ActionUpdate, Version: "1.1.0",
		Manifest: []byte(`{"product":"moult"}`), Signature: []byte("sig"), Index: 7, Expires: now.Add(10 * time.Minute),
	}
}

func mustSeal(t testing.TB, o Order, s signer) []byte {
	t.Helper()
	b, err := Seal(o, s.key, s.cert)
	must(t, err)
	return b
}

// forge seals whatever it is given, as an attacker's own program would.
func forge(t testing.TB, o any, s signer) []byte {
	t.Helper()
	text, err := json.Marshal(o)
	must(t, err)
	return envelope(t, text, s.cert, ed25519.Sign(s.key, signed(text)))
}

func envelope(t testing.TB, text, cert, sig []byte) []byte {
	t.Helper()
	b, err := json.Marshal(sealed{Order: text, Certificate: cert, Signature: sig})
	must(t, err)
	return b
}

func TestSealOpen(t *testing.T) {
	ca := mustCA(t, cluster)
	s, v := mustSigner(t, ca, server(cluster), time.Hour), mustVerifier(t, cluster, ca)
	want := goodOrder()
	want.Manifest = bytes.Repeat([]byte("<&>é"), 50<<10)
	got, err := Open(mustSeal(t, want, s), v, host, now)
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("opened %+v", got)
	}
	// A newer server's order may say more.
	newer := struct {
		Order
		Priority int `json:"priority"`
	}{goodOrder(), 3}
	if _, err := Open(forge(t, newer, s), v, host, now); err != nil {
		t.Errorf("a field of a newer server: %v", err)
	}
}

func TestSealRefusesWhatNoHostWouldOpen(t *testing.T) {
	ca := mustCA(t, cluster)
	s := mustSigner(t, ca, server(cluster), time.Hour)
	for name, spoil := range map[string]func(*Order){
		"no cluster":     func(o *Order) { o.Cluster = "" },
		"no host":        func(o *Order) { o.HostID = "" },
		"no job":         func(o *Order) { o.JobID = "" },
		"long job":       func(o *Order) { o.JobID = strings.Repeat("j", 65) },
		"path for a job": func(o *Order) { o.JobID = "../../etc/cron.d/x" },
		"dot for a job":  func(o *Order) { o.JobID = ".." },
		"no attempt":     func(o *Order) { o.Attempt = 0 },
		"other action":   func(o *Order) { o.Action = "exec" },
		"no version":     func(o *Order) { o.Version = "" },
		"no manifest":    func(o *Order) { o.Manifest = nil },
		"no signature":   func(o *Order) { o.Signature = nil },
		"no index":       func(o *Order) { o.Index = 0 },
		"no expiry":      func(o *Order) { o.Expires = time.Time{} },
	} {
		o := goodOrder()
		spoil(&o)
		if _, err := Seal(o, s.key, s.cert); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	large := goodOrder()
	large.Manifest = make([]byte, MaxSealedBytes)
	if _, err := Seal(large, s.key, s.cert); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too large: %v", err)
	}
	if _, err := Seal(goodOrder(), s.key[:31], s.cert); err == nil || !strings.Contains(err.Error(), "31 bytes") {
		t.Errorf("short key: %v", err)
	}
	if _, err := Seal(goodOrder(), s.key, s.cert[1:]); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("no certificate: %v", err)
	}
	other := mustSigner(t, ca, server(cluster), time.Hour)
	if _, err := Seal(goodOrder(), s.key, other.cert); err == nil || !strings.Contains(err.Error(), "not for its key") {
		t.Errorf("another's certificate: %v", err)
	}
}

// Invariant 17, the half that Open keeps: no order but a server's of this
// cluster, for this host, in time.
func TestOpenRefuses(t *testing.T) {
	ca, foreign, elsewhere := mustCA(t, cluster), mustCA(t, cluster), mustCA(t, "elsewhere")
	v := mustVerifier(t, cluster, ca)
	s := mustSigner(t, ca, server(cluster), 48*time.Hour)
	agentID := identity.Identity{Cluster: cluster, HostID: "agent-2", Name: "a", Role: identity.RoleAgent}
	ownID := identity.Identity{Cluster: cluster, HostID: host, Name: "a", Role: identity.RoleAgent}
	agent := mustSigner(t, ca, agentID, time.Hour)
	with := func(spoil func(*Order)) []byte {
		o := goodOrder()
		spoil(&o)
		return forge(t, o, s)
	}
	good := mustSeal(t, goodOrder(), s)
	text, err := json.Marshal(goodOrder())
	must(t, err)
	sig := ed25519.Sign(s.key, signed(text))
	for name, tc := range map[string]struct {
		sealed []byte
		at     time.Time
		want   error
	}{
		"an agent's certificate":           {forge(t, goodOrder(), agent), now, ErrUntrusted},
		"the host's own certificate":       {forge(t, goodOrder(), mustSigner(t, ca, ownID, time.Hour)), now, ErrUntrusted},
		"a server's certificate, no key":   {forge(t, goodOrder(), signer{agent.key, s.cert}), now, ErrUntrusted},
		"another CA":                       {forge(t, goodOrder(), mustSigner(t, foreign, server(cluster), time.Hour)), now, ErrUntrusted},
		"another cluster's server":         {forge(t, goodOrder(), mustSigner(t, elsewhere, server("elsewhere"), time.Hour)), now, ErrUntrusted},
		"expired certificate":              {mustSeal(t, goodOrder(), mustSigner(t, ca, server(cluster), time.Minute)), now.Add(2 * time.Minute), ErrUntrusted},
		"certificate not valid yet":        {good, now.Add(-2 * time.Hour), ErrUntrusted},
		"no signature":                     {envelope(t, text, s.cert, nil), now, ErrUntrusted},
		"no certificate":                   {envelope(t, text, nil, sig), now, ErrUntrusted},
		"signature over another domain":    {envelope(t, text, s.cert, ed25519.Sign(s.key, text)), now, ErrUntrusted},
		"a later format":                   {envelope(t, text, s.cert, ed25519.Sign(s.key, append([]byte("moult order 2\n"), text...))), now, ErrUntrusted},
		"another host":                     {with(func(o *Order) { o.HostID = "agent-2" }), now, ErrOtherHost},
		"another cluster, this one's cert": {with(func(o *Order) { o.Cluster = "elsewhere" }), now, ErrOtherHost},
		"expired":                          {good, now.Add(10 * time.Minute), ErrExpired},
		"good for too long":                {with(func(o *Order) { o.Expires = now.Add(MaxLifetime + time.Second) }), now, ErrMalformed},
		"good for ever":                    {with(func(o *Order) { o.Expires = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) }), now, ErrMalformed},
		"an unknown action":                {with(func(o *Order) { o.Action = "exec" }), now, ErrMalformed},
		"index 0":                          {with(func(o *Order) { o.Index = 0 }), now, ErrMalformed},
		"negative attempt":                 {with(func(o *Order) { o.Attempt = -1 }), now, ErrMalformed},
		"a job that is a path":             {with(func(o *Order) { o.JobID = "../x" }), now, ErrMalformed},
		"no manifest":                      {with(func(o *Order) { o.Manifest = nil }), now, ErrMalformed},
		"index as text":                    {forge(t, map[string]any{"cluster": cluster, "index": "7"}, s), now, ErrMalformed},
		"nothing":                          {nil, now, ErrMalformed},
		"null":                             {[]byte("null"), now, ErrMalformed},
		"a byte after the end":             {append(bytes.Clone(good), '}'), now, ErrMalformed},
		"a space after the end":            {append(bytes.Clone(good), ' '), now, ErrMalformed},
		"another spelling":                 {bytes.Replace(good, []byte(`"order"`), []byte(`"Order"`), 1), now, ErrMalformed},
		"a field more":                     {bytes.Replace(good, []byte(`{`), []byte(`{"x":1,`), 1), now, ErrMalformed},
		"a field twice":                    {bytes.Replace(good, []byte(`{`), []byte(`{"sig":"AAAA",`), 1), now, ErrMalformed},
		"too long":                         {append(bytes.Clone(good), make([]byte, MaxSealedBytes)...), now, ErrMalformed},
	} {
		if o, err := Open(tc.sealed, v, host, tc.at); !errors.Is(err, tc.want) {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
	}
	if _, err := Open(good, v, host, now); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if _, err := Open(good, identity.Credentials{}.Verifier(), host, now); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a verifier without a CA: %v", err)
	}
}

func TestKeyStatementsOfAnOrderAreBounded(t *testing.T) {
	ca := mustCA(t, cluster)
	v, s := mustVerifier(t, cluster, ca), mustSigner(t, ca, server(cluster), time.Hour)
	o := goodOrder()
	o.KeyStatements = make([]release.SignedStatement, MaxKeyStatements)
	if _, err := Open(mustSeal(t, o, s), v, host, now); err != nil {
		t.Errorf("as many as there may be: %v", err)
	}
	o.KeyStatements = make([]release.SignedStatement, MaxKeyStatements+1)
	if _, err := Open(forge(t, o, s), v, host, now); !errors.Is(err, ErrMalformed) {
		t.Errorf("one more: %v", err)
	}
}

// Each field of the order is under the signature.
func TestEachAlteredFieldIsNoticed(t *testing.T) {
	ca := mustCA(t, cluster)
	v, s := mustVerifier(t, cluster, ca), mustSigner(t, ca, server(cluster), time.Hour)
	text, err := json.Marshal(goodOrder())
	must(t, err)
	sig := ed25519.Sign(s.key, signed(text))
	for field := range reflect.TypeFor[Order]().Fields() {
		name := field.Name
		o := goodOrder()
		f := reflect.ValueOf(&o).Elem().FieldByName(name)
		switch f.Interface().(type) {
		case string:
			f.SetString(f.String() + "x")
		case int, time.Duration:
			f.SetInt(f.Int() + 1)
		case bool:
			f.SetBool(!f.Bool())
		case uint64:
			f.SetUint(f.Uint() + 1)
		case []byte:
			f.SetBytes(append(f.Bytes(), 'x'))
		case time.Time:
			f.Set(reflect.ValueOf(now.Add(time.Hour)))
		case [][]string:
			f.Set(reflect.ValueOf([][]string{{"x"}}))
		case []release.SignedStatement:
			f.Set(reflect.ValueOf([]release.SignedStatement{{Statement: []byte("x")}}))
		default:
			t.Fatalf("field %s has a type that this test does not alter", name)
		}
		altered, err := json.Marshal(o)
		must(t, err)
		if _, err := Open(envelope(t, altered, s.cert, sig), v, host, now); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s altered: %v", name, err)
		}
	}
}

func TestTruncationsAndMutations(t *testing.T) {
	ca := mustCA(t, cluster)
	v, s := mustVerifier(t, cluster, ca), mustSigner(t, ca, server(cluster), time.Hour)
	good := mustSeal(t, goodOrder(), s)
	for n := range good {
		if _, err := Open(good[:n], v, host, now); err == nil {
			t.Fatalf("the first %d of %d bytes open", n, len(good))
		}
	}
	var outer sealed
	must(t, json.Unmarshal(good, &outer))
	const seed, mutations = 17, 10_000
	r := rand.New(rand.NewPCG(seed, seed))
	for i := range mutations {
		// Half of them below the base64, where each bit counts.
		mutant := bytes.Clone(good)
		if i%2 == 0 {
			m := sealed{bytes.Clone(outer.Order), bytes.Clone(outer.Certificate), bytes.Clone(outer.Signature)}
			mutate(r, [][]byte{m.Order, m.Certificate, m.Signature}[r.IntN(3)])
			mutant = envelope(t, m.Order, m.Certificate, m.Signature)
		} else {
			mutate(r, mutant)
		}
		if bytes.Equal(mutant, good) {
			continue
		}
		if o, err := Open(mutant, v, host, now); err == nil {
			t.Fatalf("seed %d, mutation %d opens as %+v: %s", seed, i, o, mutant)
		}
	}
}

// mutate flips a bit, sets a byte, or exchanges two.
func mutate(r *rand.Rand, b []byte) {
	i, j := r.IntN(len(b)), r.IntN(len(b))
	switch r.IntN(3) {
	case 0:
		b[i] ^= 1 << r.IntN(8)
	case 1:
		b[i] = byte(r.Uint32())
	default:
		b[i], b[j] = b[j], b[i]
	}
}

func FuzzOpen(f *testing.F) {
	ca := mustCA(f, cluster)
	v, s := mustVerifier(f, cluster, ca), mustSigner(f, ca, server(cluster), time.Hour)
	good := mustSeal(f, goodOrder(), s)
	f.Add(good)
	f.Add([]byte(`{"order":"e30=","cert":"","sig":""}`))
	f.Add([]byte(base64.StdEncoding.EncodeToString(good)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Open(b, v, host, now); err == nil {
			// Only this run's key signs, so it must be the seed.
			if !bytes.Equal(b, good) {
				t.Fatalf("opens: %s", b)
			}
		} else if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUntrusted) {
			t.Fatalf("neither malformed nor untrusted: %v", err)
		}
		// What a rooted server signs gets no further than validate.
		if o, err := Open(envelope(t, b, s.cert, ed25519.Sign(s.key, signed(b))), v, host, now); err == nil {
			if o.HostID != host || o.Cluster != cluster || !validJobID(o.JobID) || o.Index == 0 || !now.Before(o.Expires) {
				t.Fatalf("opens: %+v", o)
			}
		}
	})
}

// Parents are for staging alone, and bounded.
func TestParentsOfAnOrder(t *testing.T) {
	many := func(n int) (ids []string) {
		for i := range n {
			ids = append(ids, fmt.Sprint("host-", i))
		}
		return ids
	}
	for name, c := range map[string]struct {
		action  string
		parents [][]string
		ok      bool
	}{
		"none": {ActionUpdate, nil, true}, "of an update": {ActionUpdate, [][]string{{"a"}}, false}, "of a drop": {ActionDrop, [][]string{{"a"}}, false},
		"two": {ActionStage, [][]string{many(4), {}}, true}, "too many ids": {ActionStage, [][]string{many(maxAncestors + 1)}, false},
		"too many stripes": {ActionStage, make([][]string, maxStripes+1), false}, "an empty id": {ActionStage, [][]string{{""}}, false},
		"a long id": {ActionStage, [][]string{{strings.Repeat("a", maxIDBytes+1)}}, false}, "another action": {"reboot", nil, false},
	} {
		o := goodOrder()
		o.Action, o.Parents = c.action, c.parents
		if err := o.validate(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
