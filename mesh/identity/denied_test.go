package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"moult/mesh/identity"
)

// enrolledStore is a host's store, and its credentials by a CA.
func enrolledStore(t testing.TB, ca *identity.CA) (*identity.Store, identity.Credentials) {
	t.Helper()
	dir := newDir(t)
	store, err := identity.OpenStore(dir)
	must(t, err)
	id, key, err := store.HostKey()
	must(t, err)
	who := identity.Identity{Cluster: clusterID, HostID: id, Name: "a1", Role: identity.RoleAgent}
	must(t, store.Save(identity.Enrolment{
		Identity: who, CertPEM: mustIssue(t, ca, who, key, time.Now(), time.Hour), CAPEM: ca.CertPEM(),
		Segment: "default", GossipKeys: [][]byte{make([]byte, 32)},
	}))
	creds, err := store.Load()
	must(t, err)
	return store, creds
}

func denyList(t testing.TB, ca *identity.CA, epoch, number uint64, hosts ...identity.DeniedHost) []byte {
	t.Helper()
	raw, err := ca.SignDenyList(identity.DenyList{Cluster: clusterID, Epoch: epoch, Number: number, Hosts: hosts})
	must(t, err)
	return raw
}

// A denied host is refused by its id and by its key, everywhere certificates are
// looked at, from the moment on that the list is taken, and after a restart.
func TestDeniedHostIsRefused(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	store, creds := enrolledStore(t, ca)
	verifier := creds.Verifier() // made before: it learns of it all the same
	key := mustKey(t)
	gone := agent("11111111-1111-1111-1111-111111111111")
	stays := agent("22222222-2222-2222-2222-222222222222")
	cert := der(mustIssue(t, ca, gone, key, time.Now(), time.Hour))
	for _, verify := range []func([]byte, time.Time) (identity.Identity, ed25519.PublicKey, error){verifier.Verify, verifier.VerifyForRenewal} {
		_, _, err := verify(cert, time.Now())
		must(t, err)
	}
	news, err := creds.Denials.Take(verifier, denyList(t, ca, 0, 5, identity.DeniedHost{HostID: gone.HostID, Key: public(key)}))
	if err != nil || !news {
		t.Fatalf("taking it: %v, %v", news, err)
	}
	check := func(when string, v *identity.Verifier, d *identity.Denials) {
		t.Helper()
		for name, tc := range map[string]struct {
			cert   []byte
			denied bool
		}{
			"the host":                  {cert, true},
			"a fresh certificate of it": {der(mustIssue(t, ca, gone, key, time.Now(), 10*time.Hour)), true},
			"its key under another id":  {der(mustIssue(t, ca, stays, key, time.Now(), time.Hour)), true},
			"its id with another key":   {der(mustIssue(t, ca, gone, mustKey(t), time.Now(), time.Hour)), true},
			"another host":              {der(mustIssue(t, ca, stays, mustKey(t), time.Now(), time.Hour)), false},
		} {
			_, _, err := v.Verify(tc.cert, time.Now())
			_, _, renew := v.VerifyForRenewal(tc.cert, time.Now())
			if errors.Is(err, identity.ErrDenied) != tc.denied || errors.Is(renew, identity.ErrDenied) != tc.denied || (err != nil) != tc.denied {
				t.Errorf("%s: %s: %v, to renew: %v", when, name, err, renew)
			}
		}
		if !d.Host(gone.HostID) || d.Host(stays.HostID) {
			t.Errorf("%s: denied: %v, %v", when, d.Host(gone.HostID), d.Host(stays.HostID))
		}
	}
	check("at once", verifier, creds.Denials)
	again, err := store.Load()
	must(t, err)
	check("loaded again", again.Verifier(), again.Denials)
	restarted, err := identity.OpenStore(store.Dir())
	must(t, err)
	fresh, err := restarted.Load()
	must(t, err)
	check("after a restart", fresh.Verifier(), fresh.Denials)
	if epoch, number := fresh.Denials.Followed(); epoch != 0 || number != 5 {
		t.Errorf("it follows %d, %d", epoch, number)
	}
	info, err := os.Stat(filepath.Join(store.Dir(), "denied"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its file: %v, %v", info, err)
	}
}

// A deny-list only goes forward, whoever brings which one in whatever order.
func TestDenyListNeverGoesBack(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	store, creds := enrolledStore(t, ca)
	v, d := creds.Verifier(), creds.Denials
	host := func(n uint64) identity.DeniedHost {
		return identity.DeniedHost{HostID: fmt.Sprintf("h%d", n), Key: bytes.Repeat([]byte{byte(n)}, 32)}
	}
	for _, step := range []struct {
		epoch, number uint64
		news, old     bool
	}{
		{0, 7, true, false},
		{0, 7, false, false}, // repeated
		{0, 6, false, true},
		{1, 2, true, false}, // a restored cluster counts anew
		{0, 99, false, true},
		{1, 3, true, false},
		{1, 2, false, true},
	} {
		news, err := d.Take(v, denyList(t, ca, step.epoch, step.number, host(step.number)))
		if news != step.news || errors.Is(err, identity.ErrOldDenyList) != step.old || (err != nil) != step.old {
			t.Errorf("list %d.%d: %v, %v", step.epoch, step.number, news, err)
		}
	}
	if _, err := d.Take(v, denyList(t, ca, 1, 3)); !errors.Is(err, identity.ErrOldDenyList) {
		t.Errorf("another list of the same number: %v", err)
	}
	var all sync.WaitGroup
	order := rand.Perm(50)
	for _, n := range order {
		all.Go(func() { _, _ = d.Take(v, denyList(t, ca, 1, uint64(10+n), host(uint64(n)))) })
	}
	all.Wait()
	if epoch, number := d.Followed(); epoch != 1 || number != 59 || !d.Host("h49") {
		t.Errorf("after all it follows %d.%d", epoch, number)
	}
	restarted, err := identity.OpenStore(store.Dir())
	must(t, err)
	fresh, err := restarted.Load()
	must(t, err)
	if _, number := fresh.Denials.Followed(); number != 59 {
		t.Errorf("on the disk is list %d", number)
	}
}

// Only the CA's key makes a deny-list, of its own cluster, and no byte of one can
// be altered.
func TestDenyListIsTheCAsAlone(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	_, creds := enrolledStore(t, ca)
	v, d := creds.Verifier(), creds.Denials
	one := identity.DeniedHost{HostID: "h", Key: make([]byte, 32)}
	good := denyList(t, ca, 0, 5, one)
	elsewhere, err := ca.SignDenyList(identity.DenyList{Cluster: "elsewhere", Number: 5, Hosts: []identity.DeniedHost{one}})
	must(t, err)
	rooted := mustKey(t)
	bad := map[string][]byte{
		"another CA's":    denyList(t, mustCA(t, clusterID, time.Now()), 0, 5, one),
		"another cluster": elsewhere,
		"a server's key":  append(ed25519.Sign(rooted, append([]byte("moult denied 1\n"), good[64:]...)), good[64:]...),
		"empty":           nil,
		"cut":             good[:len(good)-1],
		"longer":          append(bytes.Clone(good), 0),
		"very long":       bytes.Repeat([]byte{1}, 1<<20),
	}
	for i := range good {
		altered := bytes.Clone(good)
		altered[i] ^= 1 << rand.N(8)
		bad[fmt.Sprintf("byte %d altered", i)] = altered
	}
	for name, raw := range bad {
		if news, err := d.Take(v, raw); err == nil || news {
			t.Errorf("%s: taken", name)
		}
	}
	if _, number := d.Followed(); number != 0 {
		t.Errorf("it follows %d", number)
	}
	full := make([]identity.DeniedHost, identity.MaxDenied)
	for i := range full {
		full[i] = identity.DeniedHost{HostID: fmt.Sprint(i), Key: fmt.Appendf(nil, "%032d", i)}
	}
	raw := denyList(t, ca, 0, 9, full...)
	if _, err := d.Take(v, raw); err != nil || len(raw) > 256<<10 {
		t.Errorf("a full list has %d bytes: %v", len(raw), err)
	}
	if _, err := ca.SignDenyList(identity.DenyList{Cluster: clusterID, Hosts: append(full, one)}); err == nil {
		t.Error("a list that is too long is signed")
	}
}

// What a disk has done to the file counts for nothing, and keeps nobody from
// starting: a server sends the list again.
func TestDamagedDenyListIsMadeGood(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	store, _ := enrolledStore(t, ca)
	must(t, os.WriteFile(filepath.Join(store.Dir(), "denied"), []byte("x"), 0o600))
	restarted, err := identity.OpenStore(store.Dir())
	must(t, err)
	creds, err := restarted.Load()
	must(t, err)
	if news, err := creds.Denials.Take(creds.Verifier(), denyList(t, ca, 0, 5)); err != nil || !news {
		t.Errorf("the next list: %v, %v", news, err)
	}
}

// What calls itself a deny-list.
func FuzzDenyList(f *testing.F) {
	ca := mustCA(f, clusterID, time.Now())
	good, err := ca.SignDenyList(identity.DenyList{Cluster: clusterID, Epoch: 1, Number: 2, Hosts: []identity.DeniedHost{{HostID: "h", Key: make([]byte, 32)}}})
	must(f, err)
	v, err := identity.NewVerifier(clusterID, ca.CertPEM())
	must(f, err)
	f.Add(good)
	f.Add(good[:64])
	f.Add([]byte{})
	_, creds := enrolledStore(f, ca)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if news, err := creds.Denials.Take(v, raw); news && !bytes.Equal(raw, good) {
			t.Errorf("taken, though nobody signed it: %v", err)
		}
	})
}

// A host that joins or renews gets the deny-list along, however long, and a damaged
// or older one changes nothing.
func TestJoiningBringsTheDenyList(t *testing.T) {
	d := openDoor(t)
	gone := identity.DeniedHost{HostID: "gone", Key: public(mustKey(t))}
	full := make([]identity.DeniedHost, identity.MaxDenied-1, identity.MaxDenied)
	for i := range full {
		full[i] = identity.DeniedHost{HostID: fmt.Sprint(i), Key: fmt.Appendf(nil, "%032d", i)}
	}
	list := denyList(t, d.ca, 1, 7, append(full, gone)...)
	altered := bytes.Clone(list)
	altered[100] ^= 1
	for name, tc := range map[string]struct {
		denied []byte
		number uint64
	}{"a full list": {list, 7}, "an altered list": {altered, 0}, "none": {nil, 0}} {
		d.spoil = func(e *identity.Enrolment) { e.Denied = tc.denied }
		store, err := identity.OpenStore(newDir(t))
		must(t, err)
		creds, err := identity.Join(t.Context(), d.addr, d.token(t, time.Minute), store, newcomer())
		must(t, err)
		if !d.seen.TakesDenied {
			t.Error("the host does not say that it takes the list")
		}
		if _, number := creds.Denials.Followed(); number != tc.number || creds.Denials.Host(gone.HostID) != (tc.number > 0) {
			t.Errorf("%s: it follows %d", name, number)
		}
		e := identity.Enrolment{
			Identity: creds.Identity, CertPEM: creds.CertPEM, CAPEM: creds.CAPEM, Segment: creds.Segment, GossipKeys: creds.GossipKeys,
			Denied: denyList(t, d.ca, 1, 5),
		}
		cur := identity.NewCurrent(store, creds)
		_, err = cur.Take(e)
		must(t, err)
		if _, number := creds.Denials.Followed(); number != max(tc.number, 5) {
			t.Errorf("%s: after an answer with list 5 it follows %d", name, number)
		}
		e.Denied = denyList(t, d.ca, 1, 8, gone)
		_, err = cur.Take(e)
		must(t, err)
		if _, number := creds.Denials.Followed(); number != 8 || !cur.Get().Denials.Host(gone.HostID) {
			t.Errorf("%s: after a renewal with list 8 it follows %d", name, number)
		}
	}
}
