package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh/identity"
)

// issuer is a cluster with one host in a store of its own.
type issuer struct {
	t       *testing.T
	ca      *identity.CA
	current *identity.Current
	dir     string // of the store
	id      identity.Identity
	key     ed25519.PrivateKey
}

func newIssuer(t *testing.T, lifetime time.Duration) *issuer {
	t.Helper()
	store, err := identity.OpenStore(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	hostID, key, err := store.HostKey()
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, dir: store.Dir(), key: key, id: identity.Identity{Cluster: "cluster-1", HostID: hostID, Name: "a1", Role: identity.RoleAgent}}
	if i.ca, err = identity.NewCA("cluster-1", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := store.Save(i.enrolment(lifetime)); err != nil {
		t.Fatal(err)
	}
	creds, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	i.current = identity.NewCurrent(store, creds)
	return i
}

func (i *issuer) enrolment(lifetime time.Duration) identity.Enrolment {
	i.t.Helper()
	cert, err := i.ca.Issue(i.id, publicKey(i.key), time.Now(), lifetime)
	if err != nil {
		i.t.Fatal(err)
	}
	return identity.Enrolment{Identity: i.id, CertPEM: cert, CAPEM: i.ca.CertPEM(), Segment: "default", GossipKeys: [][]byte{make([]byte, 32)}}
}

// A certificate is renewed between 7/12 and 2/3 of its lifetime, again and again;
// servers that cannot be reached are asked until one can, and in time.
func TestRenewalIsInTime(t *testing.T) {
	for _, lifetime := range []time.Duration{time.Minute, 365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			i := newIssuer(t, lifetime)
			ctx, cancel := context.WithCancel(t.Context())
			asked := make(chan time.Time, 1000)
			var down atomic.Bool
			r := &nodekit.Renewal{
				Current: i.current, Renewed: func(identity.Credentials) {}, Logger: slog.New(slog.DiscardHandler),
				Ask: func(context.Context) (identity.Enrolment, error) {
					asked <- time.Now()
					if down.Load() {
						return identity.Enrolment{}, errors.New("nobody answers")
					}
					return i.enrolment(lifetime), nil
				},
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				r.Run(ctx)
			}()
			last := time.Now()
			for range 5 {
				at := <-asked
				if after := at.Sub(last); after < lifetime*7/12-time.Second || after > lifetime*2/3+time.Second {
					t.Errorf("asked after %v of %v", after, lifetime)
				}
				last = at
			}
			synctest.Wait()
			down.Store(true)
			var tries int
			for began := <-asked; (<-asked).Sub(began) < lifetime/6; {
				tries++
			}
			if tries < 4 || tries > 2*int(lifetime/6/min(max(lifetime/24, time.Second), nodekit.MaxRenewalRetry))+1 {
				t.Errorf("asked %d more times in a sixth of the lifetime", tries)
			}
			down.Store(false)
			<-asked
			synctest.Wait()
			if _, ends, _ := i.current.Get().Validity(); time.Until(ends) < lifetime-time.Second {
				t.Errorf("the certificate ends in %v", time.Until(ends))
			}
			cancel()
			<-done
		})
	}
}

// A host that was off asks soon, whatever its certificate says: much may have
// changed. One that has just joined does not.
func TestRenewalAfterAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(t, time.Hour)
		time.Sleep(10 * time.Minute)
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		r := &nodekit.Renewal{Current: i.current, Renewed: func(identity.Credentials) { cancel() }, Logger: slog.New(slog.DiscardHandler), Ask: func(context.Context) (identity.Enrolment, error) {
			return i.enrolment(time.Hour), nil
		}}
		r.Run(ctx)
		if took := time.Since(began); took > nodekit.RefreshSpread {
			t.Errorf("it asked after %v", took)
		}
	})
}

// A host whose certificate holds from later on, as it started while its clock ran
// ahead, asks at once when the clock is right; what the same wrong clock issues again
// is refused, and asked for no more often than other failures.
func TestCertificateOfAClockThatRanAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ahead = 26 * time.Hour
		store, err := identity.OpenStore(filepath.Join(t.TempDir(), "identity"))
		must(t, err)
		time.Sleep(ahead) // the wrong clock's time
		hostID, key, err := store.HostKey()
		must(t, err)
		i := &issuer{t: t, key: key, id: identity.Identity{Cluster: "cluster-1", HostID: hostID, Name: "s1", Role: identity.RoleServer}}
		i.ca, err = identity.NewCA("cluster-1", time.Now())
		must(t, err)
		must(t, store.Save(i.enrolment(365*24*time.Hour)))
		creds, err := store.Load()
		must(t, err)
		i.current = identity.NewCurrent(store, creds)
		if creds.NotYetValid(time.Now()) || !creds.NotYetValid(time.Now().Add(-ahead)) {
			t.Error("from when on the certificate holds is not told right")
		}
		right := time.Now().Add(-ahead)
		v := creds.Verifier()
		if _, _, err := v.Verify(creds.CertDER(), right); err == nil {
			t.Error("the certificate is believed before it holds")
		}
		if _, _, err := v.VerifyForRenewal(creds.CertDER(), right); err != nil {
			t.Errorf("by the right clock the certificate cannot be renewed: %v", err)
		}
		// By the right clock the CA holds, and what it issues is believed.
		cert, err := i.ca.Issue(i.id, publicKey(key), right, time.Hour)
		must(t, err)
		fresh := creds
		fresh.CertPEM = cert
		if _, _, err := v.Verify(fresh.CertDER(), right); err != nil {
			t.Errorf("what the CA issues by the right clock: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a clock that goes back there is not; so the issuer's is ahead
		i := newIssuer(t, 365*24*time.Hour)
		e := i.enrolment(365 * 24 * time.Hour)
		late, err := i.ca.Issue(i.id, publicKey(i.key), time.Now().Add(3*time.Hour), 365*24*time.Hour)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(i.dir, "cert.pem"), late, 0o600))
		store, err := identity.OpenStore(i.dir)
		must(t, err)
		creds, err := store.Load()
		must(t, err)
		i.current = identity.NewCurrent(store, creds)
		began, asked := time.Now(), 0
		ctx, cancel := context.WithCancel(t.Context())
		r := &nodekit.Renewal{Current: i.current, Renewed: func(identity.Credentials) { cancel() }, Logger: quiet, Ask: func(context.Context) (identity.Enrolment, error) {
			if asked++; asked < 4 {
				ahead := e
				ahead.CertPEM = late
				return ahead, nil
			}
			return e, nil
		}}
		r.Run(ctx)
		if took := time.Since(began); asked != 4 || took < 3*nodekit.MaxRenewalRetry/2 || took > 3*nodekit.MaxRenewalRetry || i.current.Get().NotYetValid(time.Now()) {
			t.Errorf("it asked %d times, for %v", asked, took)
		}
	})
}

// Certificates and keys are for who was enrolled, by the key that was enrolled,
// and the keys are those of its own segments.
func TestRenewalGivesTheHostsOwn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	raft := startLoneRaft(t)
	e := &enrolment{raft: raft, lifetime: time.Hour, logger: quiet}
	key := func() ed25519.PrivateKey {
		k, err := identity.NewKey()
		must(t, err)
		return k
	}
	serverKey, agentKey := key(), key()
	refused := func(what string, err error, status int) {
		t.Helper()
		var coded *identity.CodedError
		if !errors.As(err, &coded) || coded.Status != status {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := e.renewFor(ctx, "a1", publicKey(agentKey), identity.RenewRequest{})
	refused("a server that is not caught up", err, 503)

	must(t, raft.Bootstrap(ctx))
	ca, err := identity.NewCA("cluster-1", time.Now())
	must(t, err)
	secret := bytes.Repeat([]byte{7}, 32)
	propose := func(c fleet.Change) {
		t.Helper()
		_, err := raft.Propose(ctx, "system", c)
		must(t, err)
	}
	propose(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "cluster-1", CACert: ca.CertPEM(), CAKey: ca.KeyPEM(), GossipKeys: [][]byte{secret}},
		Server:  fleet.Host{ID: "s1", Name: "s1", OS: "linux", Arch: "amd64", PublicKey: publicKey(serverKey), GossipAddr: "10.1.0.1:7946", PeerAddr: "10.1.0.1:7947"},
		Admin:   fleet.User{ID: "u1", Name: "admin", Role: fleet.Admin, PasswordHash: "x"},
		Token:   fleet.APIToken{ID: "t1", Name: "t", Role: fleet.Admin, Hash: "h"},
	})
	propose(fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j1", Hash: "j1", Role: fleet.RoleAgent, Segment: "dmz", ExpiresAt: time.Now().Add(time.Hour)}})
	propose(fleet.HostEnrolled{TokenHash: "j1", Host: fleet.Host{ID: "a1", Name: "a1", OS: "linux", Arch: "amd64", PublicKey: publicKey(agentKey), GossipAddr: "10.2.0.1:7946", PeerAddr: "10.2.0.1:7947"}})

	holds := func(e identity.Enrolment, segments ...string) {
		t.Helper()
		got := []identity.Segment{{Name: e.Segment, GossipKeys: e.GossipKeys}}
		got = append(got, e.Also...)
		if len(got) != len(segments) {
			t.Errorf("it is told of %d segments, not of %v", len(got), segments)
			return
		}
		for n, name := range segments {
			want, err := identity.GossipKeys([][]byte{secret}, ca.KeyPEM(), "cluster-1", name)
			must(t, err)
			if got[n].Name != name || len(got[n].GossipKeys) != 1 || !bytes.Equal(got[n].GossipKeys[0], want[0]) {
				t.Errorf("segment %s has not its own key", name)
			}
		}
	}
	for raft.Ready() != nil && nodekit.Sleep(ctx, 10*time.Millisecond) {
	}
	answer, err := e.renewFor(ctx, "a1", publicKey(agentKey), identity.RenewRequest{})
	must(t, err)
	holds(answer, "dmz")
	verifier, err := identity.NewVerifier("cluster-1", ca.CertPEM())
	must(t, err)
	id, certified, err := verifier.Verify(identity.Credentials{CertPEM: answer.CertPEM}.CertDER(), time.Now())
	if err != nil || id.HostID != "a1" || id.Role != identity.RoleAgent || !certified.Equal(publicKey(agentKey)) {
		t.Errorf("the certificate is of %v, %v", id, err)
	}
	answer, err = e.renewFor(ctx, "a1", publicKey(agentKey), identity.RenewRequest{Also: []identity.SegmentAddr{{Segment: "plant", GossipAddr: "10.3.0.1:7946"}, {Segment: "default", GossipAddr: "10.1.0.9:7946"}}})
	must(t, err)
	holds(answer, "dmz", "plant", "default")
	if join := answer.Also[1].GossipJoin; len(join) != 1 || join[0] != "10.1.0.1:7946" {
		t.Errorf("it joins the segment default by %v", join)
	}
	if h, _ := raft.State().View().Host("a1"); strings.Join(h.Segments(), " ") != "dmz plant default" {
		t.Errorf("it is recorded in %v", h.Segments())
	}
	_, err = e.renewFor(ctx, "a1", publicKey(agentKey), identity.RenewRequest{Also: []identity.SegmentAddr{{Segment: "dmz", GossipAddr: "10.3.0.1:7946"}}})
	refused("its home once more", err, 403)
	_, err = e.renewFor(ctx, "a1", publicKey(key()), identity.RenewRequest{})
	refused("another key under its id", err, 403)
	_, err = e.renewFor(ctx, "a2", publicKey(agentKey), identity.RenewRequest{})
	refused("an id that nobody has", err, 403)

	// Keys that were changed are given as they are decided, with their number; the
	// other segments keep theirs.
	keeper := &trustKeeper{raft: raft, lifetime: time.Hour}
	fresh, err := keeper.NewKeys([]string{"dmz"})
	must(t, err)
	propose(fleet.GossipRotationBegun{Keys: fresh})
	begun, err := e.renewFor(ctx, "a1", publicKey(agentKey), identity.RenewRequest{Also: []identity.SegmentAddr{{Segment: "plant", GossipAddr: "10.3.0.1:7946"}}})
	must(t, err)
	old, err := identity.GossipKeys([][]byte{secret}, ca.KeyPEM(), "cluster-1", "dmz")
	must(t, err)
	if len(begun.GossipKeys) != 2 || !bytes.Equal(begun.GossipKeys[0], old[0]) || !bytes.Equal(begun.GossipKeys[1], fresh[0].Key) || begun.GossipRevision != raft.State().View().Index()-1 {
		t.Errorf("dmz has %d keys, of revision %d", len(begun.GossipKeys), begun.GossipRevision)
	}
	if begun.Also[0].GossipRevision != 0 || len(begun.Also[0].GossipKeys) != 1 {
		t.Errorf("plant is of revision %d", begun.Also[0].GossipRevision)
	}

	denial := fleet.HostDenied{HostID: "a1", Until: keeper.Until()}
	if until := time.Until(denial.Until); until < defaultCertificateLifetime+identity.RenewalGrace-time.Minute {
		t.Errorf("a removed host is denied for %v", until)
	}
	denial.GossipKeys, err = keeper.NewKeys([]string{"dmz", "plant"})
	must(t, err)
	propose(denial)
	_, err = e.renewFor(ctx, "a1", publicKey(agentKey), identity.RenewRequest{})
	refused("a removed host", err, 403)
}

// A host is told of the relays of its segments, as it reaches them.
func TestRelaysThatAHostIsToldOf(t *testing.T) {
	s := ringState(t)
	for i, c := range []fleet.Change{
		fleet.HostAddressesChanged{HostID: "a1", GossipAddr: "10.1.0.1:7946", PeerAddr: "10.1.0.1:7947"},
		fleet.HostSegmentsChanged{HostID: "a1", Also: []fleet.HostSegment{{Segment: "dmz", GossipAddr: "10.2.0.1:7956"}}},
	} {
		e, err := fleet.NewEntry(fmt.Sprint("r", i), "x", time.Now(), c)
		must(t, err)
		if r := s.Apply(s.View().Index()+1, e); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	v := s.View()
	for id, want := range map[string]string{"a5": "10.2.0.1:7947", "a2": "10.1.0.1:7947", "a1": ""} {
		h, _ := v.Host(id)
		if got := strings.Join(relaysFor(v, h), " "); got != want {
			t.Errorf("%s is told of %q, want %q", id, got, want)
		}
	}
}

func TestSegmentFlags(t *testing.T) {
	for _, tc := range []struct {
		gossip, peer string
		also         []string
		says         string // "": accepted
	}{
		{"10.1.0.5:7946", "0.0.0.0:7947", []string{"dmz=10.2.0.5:7946", "plant=10.3.0.5:7946"}, ""},
		{"0.0.0.0:7946", "0.0.0.0:7947", []string{"dmz=0.0.0.0:7956"}, ""},
		{"127.0.0.1:1", "127.0.0.1:2", []string{"dmz=127.0.0.1:3"}, ""},
		{"10.1.0.5:7946", ":7947", []string{"dmz"}, "SEGMENT=HOST:PORT"},
		{"10.1.0.5:7946", ":7947", []string{"=10.2.0.5:7946"}, "SEGMENT=HOST:PORT"},
		{"10.1.0.5:7946", ":7947", []string{"d mz=10.2.0.5:7946"}, "SEGMENT=HOST:PORT"},
		{"10.1.0.5:7946", ":7947", []string{strings.Repeat("x", 33) + "=10.2.0.5:7946"}, "1 to 32"},
		{"10.1.0.5:7946", ":7947", []string{"dmz=10.2.0.5"}, "SEGMENT=HOST:PORT"},
		{"10.1.0.5:7946", ":7947", []string{"dmz=10.2.0.5:1", "dmz=10.2.0.5:2"}, "given twice"},
		{"0.0.0.0:7946", ":7947", []string{"dmz=10.2.0.5:7946"}, "listened on already"},
		{"10.1.0.5:7946", ":7947", []string{"dmz=:7946"}, "listened on already"},
		{"10.1.0.5:7946", ":7947", []string{"dmz=10.2.0.5:1", "plant=10.2.0.5:1"}, "listened on already"},
		{"10.1.0.5:7946", "10.1.0.5:7947", []string{"dmz=10.2.0.5:7946"}, "cannot be reached in segment dmz"},
		{"10.1.0.5:7946", ":7947", []string{"a=h:1", "b=h:2", "c=h:3", "d=h:4"}, "4 times"},
	} {
		o := nodekit.NodeOptions{Gossip: tc.gossip, Peer: tc.peer, AlsoFlags: tc.also}
		err := errors.Join(o.ReadSegments(), o.CheckReach())
		if tc.says == "" && (err != nil || len(o.Also) != len(tc.also)) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%v: %v", tc, err)
		}
	}
	// An address that others dial is found on the way to somebody, where there is one.
	for _, tc := range []struct {
		listen, ip string
		toward     []string
		want       string
	}{
		{"10.2.0.5:7946", "", nil, "10.2.0.5:7946"},
		{"0.0.0.0:7946", "192.0.2.7", nil, "192.0.2.7:7946"},
		{"0.0.0.0:7946", "", []string{"not an address", "127.0.0.1:9"}, "127.0.0.1:7946"},
	} {
		if got, err := nodekit.AdvertisedFor(tc.listen, tc.ip, tc.toward); err != nil || got != tc.want {
			t.Errorf("%v: %s, %v", tc, got, err)
		}
	}
	unknown := nodekit.NodeOptions{Also: []nodekit.AlsoSegment{{Name: "dmz", Listen: "0.0.0.0:7956"}}}
	if err := unknown.FindSegmentAddresses(identity.Credentials{}); err == nil || !strings.Contains(err.Error(), "--also-segment dmz=") {
		t.Errorf("an address in a segment where nobody is known: %v", err)
	}
	creds := identity.Credentials{Segment: "home", Also: []identity.Segment{{Name: "dmz", GossipJoin: []string{"127.0.0.1:9"}}}}
	if err := unknown.FindSegmentAddresses(creds); err != nil || unknown.Also[0].Adv != "127.0.0.1:7956" {
		t.Errorf("an address in a segment where somebody is known: %q, %v", unknown.Also[0].Adv, err)
	}
	for says, o := range map[string]nodekit.NodeOptions{
		"home segment": {Also: []nodekit.AlsoSegment{{Name: "home"}}},
		"no key":       {Also: []nodekit.AlsoSegment{{Name: "plant"}}},
		"joined":       {Segment: "other"},
	} {
		if _, err := o.Pools(creds); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}
