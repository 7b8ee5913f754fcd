package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

// files of a store in the order in which joining writes them.
var storeFiles = []string{"host-id", "key.pem", "ca.pem", "cert.pem", "cluster.json"}

func mustStore(t testing.TB, dir string) *identity.Store {
	t.Helper()
	s, err := identity.OpenStore(dir)
	must(t, err)
	return s
}

// enrolment is what a server would give the store's host.
func enrolment(t testing.TB, s *identity.Store, ca *identity.CA, cluster string) identity.Enrolment {
	t.Helper()
	host, key, err := s.HostKey()
	must(t, err)
	id := identity.Identity{Cluster: cluster, HostID: host, Name: "web-1", Role: identity.RoleAgent}
	return identity.Enrolment{
		Identity: id, CertPEM: mustIssue(t, ca, id, key, time.Now(), time.Hour), CAPEM: ca.CertPEM(), Segment: "default",
		GossipKeys: [][]byte{bytes.Repeat([]byte{7}, 32)}, ReleaseKeys: []string{"RWQ"}, Servers: []string{"10.0.0.1:7947"}, GossipJoin: []string{"10.0.0.1:7946"},
	}
}

func joined(t testing.TB) (dir string, s *identity.Store, ca *identity.CA) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "identity")
	s, ca = mustStore(t, dir), mustCA(t, clusterID, time.Now())
	must(t, s.Save(enrolment(t, s, ca, clusterID)))
	return dir, s, ca
}

func read(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	content := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		content[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name()))
		must(t, err)
	}
	return content
}

func write(t testing.TB, content map[string][]byte) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "identity")
	must(t, os.Mkdir(dir, 0o700))
	for name, b := range content {
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	return dir
}

func TestStoreKeepsTheEnrolment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	s, ca := mustStore(t, dir), mustCA(t, clusterID, time.Now())
	if _, err := s.Load(); !errors.Is(err, identity.ErrNotEnrolled) || !strings.Contains(err.Error(), "moult token create") || s.Enrolled() {
		t.Errorf("before joining: %v", err)
	}
	e := enrolment(t, s, ca, clusterID)
	e.GossipRevision, e.Relays = 3, []string{"192.0.2.9:7947"}
	must(t, s.Save(e))
	host, key, err := s.HostKey()
	must(t, err)
	got, err := mustStore(t, dir).Load() // as the next start does
	must(t, err)
	want := identity.Credentials{
		Identity: e.Identity, Key: key, CertPEM: e.CertPEM, CAPEM: e.CAPEM, Segment: e.Segment,
		GossipKeys: e.GossipKeys, ReleaseKeys: e.ReleaseKeys, Servers: e.Servers, GossipJoin: e.GossipJoin,
		GossipRevision: 3, Relays: []string{"192.0.2.9:7947"},
		Denials: got.Denials, Trusted: got.Trusted, // nobody is denied
	}
	if !reflect.DeepEqual(got, want) || got.HostID != host {
		t.Errorf("loaded %#v", got)
	}
	if _, _, err := got.Verifier().Verify(der(got.CertPEM), time.Now()); err != nil {
		t.Error(err)
	}
}

func TestModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no mode bits")
	}
	data := t.TempDir()
	dir := filepath.Join(data, "identity")
	// A directory and a leftover that others may read, as a careless restore makes them.
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, ".key.pem.new"), []byte("the longer leftover of a crash, "+strings.Repeat("x", 500)), 0o644))
	s := mustStore(t, dir)
	must(t, s.Save(enrolment(t, s, mustCA(t, clusterID, time.Now()), clusterID)))
	st, err := os.Stat(dir)
	must(t, err)
	if st.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v", st.Mode())
	}
	content := read(t, dir)
	for _, name := range storeFiles {
		st, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
		delete(content, name)
	}
	if len(content) > 0 {
		t.Errorf("left behind: %v", content)
	}
	if _, err := s.Load(); err != nil {
		t.Error(err)
	}
}

// A crash of the first join, at any file: the host joins again and is the same.
func TestCrashWhileJoining(t *testing.T) {
	whole := func() map[string][]byte { dir, _, _ := joined(t); return read(t, dir) }()
	ca := mustCA(t, clusterID, time.Now())
	for n := range storeFiles {
		content := map[string][]byte{}
		for _, name := range storeFiles[:n] {
			content[name] = whole[name]
		}
		content["."+storeFiles[n]+".new"] = whole[storeFiles[n]][:len(whole[storeFiles[n]])/2]
		s := mustStore(t, write(t, content))
		if s.Enrolled() {
			t.Fatalf("with %v it counts as joined", storeFiles[:n])
		}
		if _, err := s.Load(); !errors.Is(err, identity.ErrNotEnrolled) {
			t.Errorf("with %v: %v", storeFiles[:n], err)
		}
		host, key, err := s.HostKey()
		must(t, err)
		if n > 0 && host+"\n" != string(whole["host-id"]) {
			t.Error("the host id changed")
		}
		must(t, s.Save(enrolment(t, s, ca, clusterID)))
		got, err := s.Load()
		must(t, err)
		if got.HostID != host || !got.Key.Equal(key) {
			t.Errorf("with %v the host became another", storeFiles[:n])
		}
	}
}

// The order in which Save writes is what makes the crashes above harmless: a
// Save that cannot go on at some file has not said yet that the host has joined.
func TestSaveThatCannotGoOn(t *testing.T) {
	for _, name := range []string{"ca.pem", "cert.pem"} {
		dir := newDir(t)
		s := mustStore(t, dir)
		e := enrolment(t, s, mustCA(t, clusterID, time.Now()), clusterID)
		inTheWay := filepath.Join(dir, name, "x")
		must(t, os.MkdirAll(inTheWay, 0o700))
		if err := s.Save(e); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if s.Enrolled() {
			t.Errorf("%s could not be written, and the host counts as joined", name)
		}
		must(t, os.RemoveAll(filepath.Join(dir, name)))
		must(t, s.Save(e))
		if _, err := s.Load(); err != nil {
			t.Errorf("%s: after a second try: %v", name, err)
		}
		if len(read(t, dir)) != len(storeFiles) {
			t.Errorf("%s: left behind: %v", name, read(t, dir))
		}
	}
}

// A crash of a later Save, at any file: what is there can be used, and the
// certificate says who the host is.
func TestCrashWhileSavingAgain(t *testing.T) {
	dir, s, ca := joined(t)
	old := read(t, dir)
	next := enrolment(t, s, ca, clusterID)
	next.Name, next.Servers = "web-renamed", []string{"10.0.0.9:7947"}
	_, key, err := s.HostKey()
	must(t, err)
	next.CertPEM = mustIssue(t, ca, next.Identity, key, time.Now(), 2*time.Hour)
	must(t, s.Save(next))
	renewed := read(t, dir)
	for n := range len(storeFiles) + 1 {
		content := map[string][]byte{}
		for i, name := range storeFiles {
			content[name] = old[name]
			if i < n {
				content[name] = renewed[name]
			}
		}
		got, err := mustStore(t, write(t, content)).Load()
		if err != nil {
			t.Errorf("with %v renewed: %v", storeFiles[:n], err)
			continue
		}
		if want := map[bool]string{true: "web-renamed", false: "web-1"}[n > 3]; got.Name != want {
			t.Errorf("with %v renewed the host is called %q", storeFiles[:n], got.Name)
		}
	}
}

func TestDamagedFiles(t *testing.T) {
	dir, _, _ := joined(t)
	whole := read(t, dir)
	otherDir, _, _ := joined(t)
	other := read(t, otherDir)
	for _, name := range storeFiles {
		for kind, damaged := range map[string][]byte{
			"missing": nil, "empty": {}, "cut off": whole[name][:len(whole[name])/2],
			"zeros":          make([]byte, len(whole[name])),
			"another host's": other[name],
		} {
			content := map[string][]byte{}
			for n, b := range whole {
				content[n] = b
			}
			content[name] = damaged
			if damaged == nil {
				delete(content, name)
			}
			damagedDir := write(t, content)
			_, err := mustStore(t, damagedDir).Load()
			if name == "cluster.json" && kind == "missing" {
				if !errors.Is(err, identity.ErrNotEnrolled) {
					t.Errorf("%s %s: %v", name, kind, err)
				}
				continue
			}
			if name == "cluster.json" && kind == "another host's" {
				// The certificate says who this is; the rest is the same cluster's.
				if err != nil {
					t.Errorf("%s %s: %v", name, kind, err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), "move it away and join again") {
				t.Errorf("%s %s: %v", name, kind, err)
				continue
			}
			if kind != "another host's" && !strings.Contains(err.Error(), name) {
				t.Errorf("%s %s: the message does not name the file: %v", name, kind, err)
			}
			if bytes.Contains([]byte(err.Error()), whole["key.pem"][30:80]) {
				t.Errorf("%s %s: the message shows the key: %v", name, kind, err)
			}
			// Nothing repairs itself into another host.
			if after := read(t, damagedDir); !reflect.DeepEqual(after, content) {
				t.Errorf("%s %s: Load wrote %v", name, kind, after)
			}
		}
	}
}

func TestSaveRefusesWhatCannotBeUsed(t *testing.T) {
	ca, foreign := mustCA(t, clusterID, time.Now()), mustCA(t, clusterID, time.Now())
	for name, spoil := range map[string]func(*identity.Enrolment, ed25519.PrivateKey){
		"certificate missing": func(e *identity.Enrolment, _ ed25519.PrivateKey) { e.CertPEM = nil },
		"CA missing":          func(e *identity.Enrolment, _ ed25519.PrivateKey) { e.CAPEM = nil },
		"another CA":          func(e *identity.Enrolment, _ ed25519.PrivateKey) { e.CAPEM = foreign.CertPEM() },
		"certificate of another key": func(e *identity.Enrolment, _ ed25519.PrivateKey) {
			e.CertPEM = mustIssue(t, ca, e.Identity, mustKey(t), time.Now(), time.Hour)
		},
		"certificate of another host": func(e *identity.Enrolment, key ed25519.PrivateKey) {
			e.HostID = hostID
			e.CertPEM = mustIssue(t, ca, e.Identity, key, time.Now(), time.Hour)
		},
		"expired certificate": func(e *identity.Enrolment, key ed25519.PrivateKey) {
			e.CertPEM = mustIssue(t, ca, e.Identity, key, time.Now().Add(-2*time.Hour), time.Hour)
		},
		"role beside the certificate": func(e *identity.Enrolment, _ ed25519.PrivateKey) { e.Role = identity.RoleServer },
		"another cluster id":          func(e *identity.Enrolment, _ ed25519.PrivateKey) { e.Cluster = "elsewhere" },
		"no segment":                  func(e *identity.Enrolment, _ ed25519.PrivateKey) { e.Segment = "" },
		"no gossip key":               func(e *identity.Enrolment, _ ed25519.PrivateKey) { e.GossipKeys = nil },
		"short gossip key":            func(e *identity.Enrolment, _ ed25519.PrivateKey) { e.GossipKeys = [][]byte{make([]byte, 8)} },
	} {
		s := mustStore(t, filepath.Join(t.TempDir(), "identity"))
		e := enrolment(t, s, ca, clusterID)
		_, key, err := s.HostKey()
		must(t, err)
		spoil(&e, key)
		if err := s.Save(e); err == nil {
			t.Errorf("%s: saved", name)
		}
		if s.Enrolled() {
			t.Errorf("%s: the host counts as joined", name)
		}
	}
}

func TestStoreOfAnotherCluster(t *testing.T) {
	dir, s, _ := joined(t)
	before := read(t, dir)
	e := enrolment(t, s, mustCA(t, "elsewhere", time.Now()), "elsewhere")
	err := s.Save(e)
	if !errors.Is(err, identity.ErrOtherCluster) || !strings.Contains(err.Error(), filepath.Dir(dir)) || !strings.Contains(err.Error(), "--data") {
		t.Errorf("error %v", err)
	}
	if !reflect.DeepEqual(read(t, dir), before) {
		t.Error("the directory changed")
	}
}

// Load is about damage, not about age: an expired certificate is its peers' to
// refuse. And an issuer's clock may run behind that of the CA's maker.
func TestLoadMindsNoClock(t *testing.T) {
	now := time.Now()
	dir, s, ca := joined(t)
	e := enrolment(t, s, ca, clusterID)
	_, key, err := s.HostKey()
	must(t, err)
	e.CertPEM = mustIssue(t, ca, e.Identity, key, now.Add(-50*time.Minute), 24*time.Hour)
	must(t, s.Save(e))
	if _, err := s.Load(); err != nil {
		t.Errorf("the issuer's clock runs behind: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "cert.pem"), mustIssue(t, ca, e.Identity, key, now.Add(-30*time.Minute), time.Minute), 0o600))
	creds, err := s.Load()
	must(t, err)
	if _, _, err := creds.Verifier().Verify(der(creds.CertPEM), now); err == nil {
		t.Error("the expired certificate verifies")
	}
}

func TestStoreThatCannotBeOpened(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := identity.OpenStore(filepath.Join(file, "identity")); err == nil || !strings.Contains(err.Error(), "--data") {
		t.Errorf("below a file: %v", err)
	}
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "host-id"), 0o700))
	if _, _, err := mustStore(t, dir).HostKey(); err == nil || !strings.Contains(err.Error(), "host-id") || !strings.Contains(err.Error(), "the user who owns") {
		t.Errorf("a directory where a file belongs: %v", err)
	}
}
