package identity_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

// cas are CAs that follow one another, and what says so.
type cas struct {
	all   []*identity.CA
	chain identity.CAChain
}

func mustCAs(t testing.TB, n int) (c cas) {
	t.Helper()
	for i := range n {
		c.all = append(c.all, mustCA(t, clusterID, time.Now()))
		if i == 0 {
			continue
		}
		signed, err := c.all[i-1].SignSuccession(clusterID, uint64(i), c.all[i])
		must(t, err)
		c.chain.Successions = append(c.chain.Successions, signed)
	}
	return c
}

func (c cas) retired(t testing.TB, n int) identity.CAChain {
	t.Helper()
	signed, err := c.all[n].SignRetirement(clusterID, uint64(n))
	must(t, err)
	return identity.CAChain{Successions: c.chain.Successions, Retirement: signed}
}

func hashOf(t testing.TB, ca *identity.CA) string {
	t.Helper()
	hash, err := identity.CAHash(ca.CertPEM())
	must(t, err)
	return hash
}

// joinedUnder is a store that has joined under a CA.
func joinedUnder(t testing.TB, ca *identity.CA) (dir string, s *identity.Store, creds identity.Credentials) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "identity")
	s = mustStore(t, dir)
	must(t, s.Save(enrolment(t, s, ca, clusterID)))
	creds, err := s.Load()
	must(t, err)
	return dir, s, creds
}

func trusts(t testing.TB, creds identity.Credentials, want ...*identity.CA) {
	t.Helper()
	var hashes []string
	for _, ca := range want {
		hashes = append(hashes, hashOf(t, ca))
	}
	if got := creds.Trusted.Hashes(); !slices.Equal(got, hashes) {
		t.Errorf("trusted are %v, want %v", got, hashes)
	}
}

// A host follows what its CA and the next one signed, and every verifier that it made
// before follows with it.
func TestFollowAChangeOfTheCA(t *testing.T) {
	c := mustCAs(t, 3)
	dir, s, creds := joinedUnder(t, c.all[0])
	verifier := creds.Verifier()
	leaf := func(ca *identity.CA) []byte {
		key, err := identity.NewKey()
		must(t, err)
		return der(mustIssue(t, ca, identity.Identity{Cluster: clusterID, HostID: "h9", Name: "x", Role: identity.RoleServer}, key, time.Now(), time.Hour))
	}
	believes := func(want ...bool) {
		t.Helper()
		for i, ca := range c.all {
			if _, _, err := verifier.Verify(leaf(ca), time.Now()); (err == nil) != want[i] {
				t.Errorf("CA %d: %v", i, err)
			}
		}
	}
	follow := func(chain identity.CAChain, want bool) {
		t.Helper()
		if news, err := creds.Trusted.Follow(clusterID, chain); err != nil || news != want {
			t.Fatalf("followed: %v, %v", news, err)
		}
	}
	believes(true, false, false)
	if !creds.Trusted.MetUnknown() || creds.Trusted.MetUnknown() {
		t.Error("a certificate of an unknown CA is not noticed, or twice")
	}
	follow(identity.CAChain{Successions: c.chain.Successions[:1]}, true)
	follow(identity.CAChain{Successions: c.chain.Successions[:1]}, false)
	believes(true, true, false)
	fresh, err := mustStore(t, dir).Load() // as the next start does
	must(t, err)
	trusts(t, fresh, c.all[0], c.all[1])

	// It renews under the new one, and then the old one is retired.
	current := identity.NewCurrent(s, creds)
	creds, err = current.Take(enrolment(t, s, c.all[1], clusterID))
	must(t, err)
	if string(creds.CAPEM) != string(c.all[1].CertPEM()) {
		t.Error("it shows another CA than its certificate's")
	}
	recheck := verifier.Recheck(mustParse(t, leaf(c.all[0])))
	must(t, recheck())
	follow(c.retired(t, 1), true) // and the succession to CA 2, all at once
	follow(c.retired(t, 1), false)
	believes(false, true, true)
	if err := recheck(); err == nil {
		t.Error("a certificate of the retired CA is still believed")
	}
	if !creds.Trusted.Knows(hashOf(t, c.all[0])) {
		t.Error("the retired CA is not remembered")
	}
	if _, err := current.Take(enrolment(t, s, c.all[0], clusterID)); err == nil {
		t.Error("it takes a certificate of the retired CA")
	}
	fresh, err = mustStore(t, dir).Load()
	must(t, err)
	trusts(t, fresh, c.all[1], c.all[2])
}

// Everything that is not what it should be changes nothing.
func TestFollowRefuses(t *testing.T) {
	c, other := mustCAs(t, 4), mustCAs(t, 3)
	sign := func(by *identity.CA, cluster string, n uint64, next *identity.CA) []byte {
		b, err := by.SignSuccession(cluster, n, next)
		must(t, err)
		return b
	}
	retire := func(by *identity.CA, cluster string, n uint64) []byte {
		b, err := by.SignRetirement(cluster, n)
		must(t, err)
		return b
	}
	chain := func(successions ...[]byte) identity.CAChain { return identity.CAChain{Successions: successions} }
	// Signed by one of the two only: somebody names a CA that is not theirs, or that
	// nobody trusts.
	var halves struct {
		Statement []byte `json:"statement"`
		Signature []byte `json:"sig"`
		New       []byte `json:"new_sig"`
	}
	must(t, json.Unmarshal(c.chain.Successions[0], &halves))
	both := halves
	halves.New = both.Signature
	oldAlone, err := json.Marshal(halves)
	must(t, err)
	halves.New, halves.Signature = both.New, both.New
	newAlone, err := json.Marshal(halves)
	must(t, err)
	// A retirement of the true CA's, and a signature of its over something else.
	var told struct {
		Statement []byte `json:"statement"`
		Signature []byte `json:"sig"`
	}
	must(t, json.Unmarshal(retire(c.all[1], clusterID, 1), &told))
	told.Signature = both.New
	unsigned, err := json.Marshal(told)
	must(t, err)
	cases := map[string]identity.CAChain{
		"by the old CA alone":            chain(oldAlone),
		"by the new CA alone":            chain(newAlone),
		"a retirement by nobody":         {Successions: c.chain.Successions[:1], Retirement: unsigned},
		"another cluster's CAs":          other.chain,
		"of another cluster":             chain(sign(c.all[0], "cluster-2", 1, c.all[1])),
		"with a gap":                     chain(c.chain.Successions[1]),
		"from a CA of nobody":            chain(sign(other.all[1], clusterID, 1, c.all[1])),
		"with a number too high":         chain(sign(c.all[0], clusterID, 2, c.all[1])),
		"garbage":                        chain([]byte("{}")),
		"too long":                       chain([]byte(strings.Repeat(" ", 9<<10))),
		"too many":                       {Successions: make([][]byte, identity.MaxCAStatements+1)},
		"a retirement by the old CA":     {Successions: c.chain.Successions[:1], Retirement: retire(c.all[0], clusterID, 1)},
		"a retirement of no known CA":    {Retirement: retire(c.all[1], clusterID, 1)},
		"a retirement, another cluster":  {Successions: c.chain.Successions[:1], Retirement: retire(c.all[1], "cluster-2", 1)},
		"a retirement that is a garbage": {Retirement: []byte("null")},
	}
	for name, chain := range cases {
		dir, _, creds := joinedUnder(t, c.all[0])
		before := read(t, dir)
		if news, err := creds.Trusted.Follow(clusterID, chain); err == nil || news {
			t.Errorf("%s: followed: %v, %v", name, news, err)
		}
		trusts(t, creds, c.all[0])
		if got := read(t, dir); len(got) != len(before) {
			t.Errorf("%s: it wrote a file", name)
		}
	}

	// Whatever byte is altered, nobody but the true CA comes of it: JSON has several
	// spellings for one statement.
	good := c.chain.Successions[0]
	_, _, untouched := joinedUnder(t, c.all[0])
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1
		if news, _ := untouched.Trusted.Follow(clusterID, chain(bad)); news {
			trusts(t, untouched, c.all[0], c.all[1])
			_, _, untouched = joinedUnder(t, c.all[0])
		}
	}

	// Two successors of one number: somebody has the old key. Neither the first one nor
	// its order changes.
	_, _, creds := joinedUnder(t, c.all[0])
	_, err = creds.Trusted.Follow(clusterID, chain(c.chain.Successions[0]))
	must(t, err)
	evil := mustCA(t, clusterID, time.Now())
	if _, err := creds.Trusted.Follow(clusterID, chain(sign(c.all[0], clusterID, 1, evil))); !errors.Is(err, identity.ErrOtherSuccessor) {
		t.Errorf("another successor is answered with %v", err)
	}
	trusts(t, creds, c.all[0], c.all[1])
	// Once the old CA is retired, its key is good for nothing.
	_, err = creds.Trusted.Follow(clusterID, c.retired(t, 1))
	must(t, err)
	for n := range uint64(5) {
		if news, _ := creds.Trusted.Follow(clusterID, chain(sign(c.all[0], clusterID, n+1, evil))); news {
			t.Errorf("the retired CA's key makes CA %d", n+1)
		}
	}
}

func mustParse(t testing.TB, raw []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(raw)
	must(t, err)
	return cert
}

// Whatever write the power failed at, the host has an identity that it can use.
func TestCrashWhileTheCAIsChanged(t *testing.T) {
	c := mustCAs(t, 2)
	dir, s, creds := joinedUnder(t, c.all[0])
	var states []map[string][]byte
	keep := func() { states = append(states, read(t, dir)) }
	keep()
	_, err := creds.Trusted.Follow(clusterID, c.chain)
	must(t, err)
	keep()
	current := identity.NewCurrent(s, creds)
	e := enrolment(t, s, c.all[1], clusterID)
	_, err = current.Take(e)
	must(t, err)
	keep()
	// The files that Save replaces one by one.
	for i, name := range []string{"ca.pem", "cert.pem", "cluster.json"} {
		mixed := maps.Clone(states[1])
		for _, done := range []string{"ca.pem", "cert.pem", "cluster.json"}[:i] {
			mixed[done] = states[2][done]
		}
		mixed["."+name+".new"] = []byte("half")
		states = append(states, mixed)
	}
	_, err = creds.Trusted.Follow(clusterID, c.retired(t, 1))
	must(t, err)
	keep()
	// The old CA is retired, and the certificate is still by it: the host was off.
	late := maps.Clone(states[1])
	late["cas.json"] = read(t, dir)["cas.json"]
	states = append(states, late)
	for i, files := range states {
		files[".cas.json.new"] = []byte("half")
		got, err := mustStore(t, write(t, files)).Load()
		if err != nil {
			t.Errorf("state %d: %v", i, err)
			continue
		}
		by, err := identity.NewVerifier(clusterID, got.CAPEM)
		must(t, err)
		if _, _, err := by.Verify(got.CertDER(), time.Now()); err != nil || got.HostID != creds.HostID {
			t.Errorf("state %d: it shows a CA that did not sign its certificate: %v", i, err)
		}
	}
	damaged := read(t, dir)
	damaged["cas.json"] = damaged["cas.json"][:40]
	if _, err := mustStore(t, write(t, damaged)).Load(); err == nil || !strings.Contains(err.Error(), "cas.json is damaged") {
		t.Errorf("a damaged cas.json: %v", err)
	}
}

// On a server only the enrolled key makes a host; with it, a certificate of a retired
// CA gets a new one.
func TestEnrolledKeysCount(t *testing.T) {
	c := mustCAs(t, 2)
	_, _, creds := joinedUnder(t, c.all[0])
	mine, err := identity.NewKey()
	must(t, err)
	id := identity.Identity{Cluster: clusterID, HostID: "h1", Name: "web", Role: identity.RoleServer}
	cert := func(ca *identity.CA, key ed25519.PrivateKey, ttl time.Duration) []byte {
		return der(mustIssue(t, ca, id, key, time.Now().Add(-2*time.Hour), 2*time.Hour+ttl))
	}
	thief, err := identity.NewKey()
	must(t, err)
	v := creds.Verifier()
	creds.Trusted.SetMembers(func(hostID string) (ed25519.PublicKey, bool) {
		return mine.Public().(ed25519.PublicKey), hostID == "h1"
	})
	check := func(what string, want bool, err error) {
		t.Helper()
		if (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	verify := func(b []byte) error { _, _, err := v.Verify(b, time.Now()); return err }
	renew := func(b []byte) error { _, _, err := v.VerifyForRenewal(b, time.Now()); return err }
	check("the enrolled key", true, verify(cert(c.all[0], mine, time.Hour)))
	check("another key under a trusted CA", false, verify(cert(c.all[0], thief, time.Hour)))
	check("another key, to renew", false, renew(cert(c.all[0], thief, time.Hour)))
	_, err = creds.Trusted.Follow(clusterID, c.retired(t, 1))
	must(t, err)
	check("the retired CA", false, verify(cert(c.all[0], mine, time.Hour)))
	check("the retired CA, to renew", true, renew(cert(c.all[0], mine, time.Hour)))
	check("the retired CA, expired, to renew", true, renew(cert(c.all[0], mine, -time.Hour)))
	check("the retired CA, another key, to renew", false, renew(cert(c.all[0], thief, time.Hour)))
	check("a CA of nobody, to renew", false, renew(cert(mustCA(t, clusterID, time.Now()), mine, time.Hour)))
	id.HostID = "h2"
	check("the retired CA, a host that is not enrolled", false, renew(cert(c.all[0], mine, time.Hour)))
	check("a host that is not enrolled yet", true, verify(cert(c.all[1], mine, time.Hour)))
}

// The deny-list and the epoch are believed by the CAs that are trusted, and what lies
// on the disk outlives its CA.
func TestSignedListsOutliveTheirCA(t *testing.T) {
	c := mustCAs(t, 2)
	dir, _, creds := joinedUnder(t, c.all[0])
	list := func(ca *identity.CA, n uint64) []byte {
		b, err := ca.SignDenyList(identity.DenyList{Cluster: clusterID, Number: n, Hosts: []identity.DeniedHost{{HostID: "h9", Key: make([]byte, 32)}}})
		must(t, err)
		return b
	}
	take := func(b []byte) (bool, error) { return creds.Denials.Take(creds.Verifier(), b) }
	if news, err := take(list(c.all[0], 1)); err != nil || !news {
		t.Fatal(news, err)
	}
	if _, err := take(list(c.all[1], 2)); err == nil {
		t.Error("a list of an unknown CA is followed")
	}
	_, err := creds.Trusted.Follow(clusterID, c.retired(t, 1))
	must(t, err)
	fresh, err := mustStore(t, dir).Load()
	must(t, err)
	if !fresh.Denials.Host("h9") {
		t.Error("the list on the disk is lost with its CA")
	}
	if news, err := take(list(c.all[1], 1)); err != nil || news { // the same, signed anew
		t.Error(news, err)
	}
	if _, err := take(list(c.all[0], 5)); err == nil {
		t.Error("a list of the retired CA is followed")
	}
	for i, ca := range c.all {
		b, err := ca.SignEpoch(identity.EpochStatement{Cluster: clusterID, Epoch: 7})
		must(t, err)
		if _, err := creds.Verifier().VerifyEpoch(b); (err == nil) != (i == 1) {
			t.Errorf("epoch by CA %d: %v", i, err)
		}
	}
}

// An old token leads to the new CA, by the old one's signature and no other.
func TestJoinWithATokenOfAnOldCA(t *testing.T) {
	c := mustCAs(t, 3)
	d := open(t, c.all[1], credentials(t, c.all[1], server("s1")), slog.New(slog.DiscardHandler))
	text, hash := mustToken(t, c.all[0])
	d.tokens[hash] = &tokenState{expires: time.Now().Add(time.Minute)}
	tok, err := identity.ParseToken(text)
	must(t, err)
	for what, chain := range map[string]identity.CAChain{"no statement": {}, "somebody else's statements": mustCAs(t, 3).chain, "garbage": {Successions: [][]byte{[]byte("{}")}}} {
		d.mu.Lock()
		d.chain = chain
		d.mu.Unlock()
		if _, err := identity.Join(t.Context(), d.addr, tok, mustStore(t, newDir(t)), newcomer()); !errors.Is(err, identity.ErrUntrustedServer) {
			t.Errorf("with %s: %v", what, err)
		}
	}
	if n := d.timesAsked(); n > 0 {
		t.Errorf("the secret was sent %d times", n)
	}
	d.mu.Lock()
	d.chain = c.chain
	d.spoil = func(e *identity.Enrolment) {
		e.CAs = []identity.TrustedCA{{Number: 1, Cert: c.all[1].CertPEM()}, {Number: 2, Cert: c.all[2].CertPEM()}}
	}
	d.mu.Unlock()
	s := mustStore(t, newDir(t))
	creds, err := identity.Join(t.Context(), d.addr, tok, s, newcomer())
	must(t, err)
	trusts(t, creds, c.all[1], c.all[2])
	chain, err := identity.FetchChain(t.Context(), d.addr)
	if err != nil || len(chain.Successions) != 2 {
		t.Errorf("fetched %d, %v", len(chain.Successions), err)
	}
}

// A store that has joined takes no server's word on CAs.
func TestOnlyNewcomersTakeCAsByWord(t *testing.T) {
	c, evil := mustCAs(t, 2), mustCA(t, clusterID, time.Now())
	_, s, creds := joinedUnder(t, c.all[0])
	e := enrolment(t, s, evil, clusterID)
	e.CAs = []identity.TrustedCA{{Number: 0, Cert: c.all[0].CertPEM()}, {Number: 1, Cert: evil.CertPEM()}}
	if _, err := identity.NewCurrent(s, creds).Take(e); err == nil {
		t.Error("a renewal brings a CA")
	}
	if err := s.Save(e); err == nil {
		t.Error("it is saved")
	}
	trusts(t, creds, c.all[0])
	fresh := mustStore(t, newDir(t))
	bad := enrolment(t, fresh, c.all[0], clusterID)
	bad.CAs = []identity.TrustedCA{{Number: 1, Cert: evil.CertPEM()}}
	if err := fresh.Save(bad); err == nil {
		t.Error("a host joins that does not trust its own CA")
	}
	bad.CAs = []identity.TrustedCA{{Number: 2, Cert: c.all[0].CertPEM()}, {Number: 1, Cert: evil.CertPEM()}}
	if err := fresh.Save(bad); err == nil {
		t.Error("a host joins with CAs in no order")
	}
}
