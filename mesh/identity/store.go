package identity

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
)

// The files of a store.
const (
	hostIDFile  = "host-id"
	keyFile     = "key.pem"
	caFile      = "ca.pem"
	certFile    = "cert.pem"
	clusterFile = "cluster.json"
)

// startOver ends the errors about files that no retry repairs.
const startOver = "restore the data directory from a backup, or move it away and join again with a new token"

// Store keeps a host's identity in a directory. Its methods are safe for
// concurrent use within one process; a data directory belongs to one process at
// a time.
type Store struct {
	dir     string
	denials *Denials
	mu      sync.Mutex // orders the writes
}

// OpenStore opens the directory DATA/identity, or makes it. The directory gets
// mode 0700, whatever it had.
func OpenStore(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open identity directory: %w", err)
	}
	if err := makePrivateDir(dir); err != nil {
		return nil, fmt.Errorf("open identity directory: %w; give a --data that this user owns", err)
	}
	return &Store{dir: dir, denials: &Denials{dir: dir}}, nil
}

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// HostKey returns this host's ID and private key. At first it makes both; they
// are on the disk when it returns, and are the same ever after.
func (s *Store) HostKey() (hostID string, key ed25519.PrivateKey, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hostKey()
}

func (s *Store) hostKey() (hostID string, key ed25519.PrivateKey, err error) {
	text, err := s.readOrMake(hostIDFile, func() ([]byte, error) { return []byte(uuid.NewString() + "\n"), nil })
	if err != nil {
		return "", nil, err
	}
	id, err := uuid.ParseBytes(trimNewline(text))
	if err != nil {
		return "", nil, fmt.Errorf("%s is damaged: %w; %s", s.path(hostIDFile), err, startOver)
	}
	text, err = s.readOrMake(keyFile, func() ([]byte, error) {
		key, err := NewKey()
		return keyPEM(key), err
	})
	if err != nil {
		return "", nil, err
	}
	key, err = parseKey(text)
	if err != nil {
		return "", nil, fmt.Errorf("%s is damaged: %w; %s", s.path(keyFile), err, startOver)
	}
	return id.String(), key, nil
}

// readOrMake reads a file that the host makes itself. One that is gone after
// the host joined is not made anew: the certificate would not fit it.
func (s *Store) readOrMake(name string, fresh func() ([]byte, error)) ([]byte, error) {
	text, err := os.ReadFile(s.path(name))
	if err == nil {
		return text, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, unreadable(err)
	}
	if s.Enrolled() {
		return nil, fmt.Errorf("%s is missing; %s", s.path(name), startOver)
	}
	if text, err = fresh(); err != nil {
		return nil, err
	}
	return text, writeFile(s.dir, name, text)
}

// unreadable is about a file that is there.
func unreadable(err error) error {
	return fmt.Errorf("%w; run moult as the user who owns the data directory, or repair the disk", err)
}

func trimNewline(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\n' {
		return b[:n-1]
	}
	return b
}

// Enrolled tells whether this host has joined a cluster.
func (s *Store) Enrolled() bool { return HasEnrolment(s.dir) }

// HasEnrolment tells the same of a directory that is not to be made.
func HasEnrolment(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, clusterFile))
	return err == nil
}

// Save keeps what joining gave, after checking that it can be used: the
// certificate must be this host's, for this host's key, by the CA beside it, and
// valid now. A store of another cluster is refused with ErrOtherCluster and
// stays as it was; saving again for the same cluster replaces what was there.
func (s *Store) Save(e Enrolment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	hostID, key, err := s.hostKey()
	if err != nil {
		return err
	}
	if err := s.refuseOther(e.Cluster); err != nil {
		return err
	}
	if err := e.check(hostID, key, time.Now()); err != nil {
		return fmt.Errorf("keep the enrolment: %w", err)
	}
	text, err := json.MarshalIndent(clusterRecord{
		Identity: e.Identity, Segment: e.Segment, GossipKeys: e.GossipKeys,
		ReleaseKeys: e.ReleaseKeys, KeyPolicy: e.KeyPolicy, Servers: e.Servers, GossipJoin: e.GossipJoin, Also: e.Also,
		GossipRevision: e.GossipRevision, Relays: e.Relays,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("keep the enrolment: %w", err)
	}
	s.takeDenied(e)
	// cluster.json comes last: it says that the others are there.
	if err := writeFile(s.dir, caFile, e.CAPEM); err != nil {
		return err
	}
	if err := writeFile(s.dir, certFile, e.CertPEM); err != nil {
		return err
	}
	return writeFile(s.dir, clusterFile, append(text, '\n'))
}

// takeDenied follows the deny-list that came with an enrolment, before the host
// talks to anybody by it. One that is no good keeps no host from joining or from
// renewing its certificate: servers send it again to whoever does not say that it
// follows it, and then the host's log tells what is wrong with it.
func (s *Store) takeDenied(e Enrolment) {
	if verifier, err := NewVerifier(e.Cluster, e.CAPEM); err == nil && len(e.Denied) > 0 {
		_, _ = s.denials.Take(verifier, e.Denied)
	}
}

// refuseOther errs when the store belongs to another cluster than this one.
func (s *Store) refuseOther(cluster string) error {
	old, err := s.record()
	switch {
	case errors.Is(err, ErrNotEnrolled):
		return nil
	case err != nil:
		return err // damaged: whose it is cannot be told
	case old.Cluster != cluster:
		return s.otherCluster(old.Cluster, cluster)
	}
	return nil
}

func (s *Store) otherCluster(have, want string) error {
	data := filepath.Dir(s.dir)
	return fmt.Errorf("%w: %s is of cluster %s, not of %s; give a new directory with --data, or move %s away if that cluster is no longer needed",
		ErrOtherCluster, data, have, want, data)
}

// refuseOtherCA is refuseOther for one who knows only the CA's hash.
func (s *Store) refuseOtherCA(caHash string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := s.record()
	if errors.Is(err, ErrNotEnrolled) {
		return nil
	}
	if err != nil {
		return err
	}
	text, err := os.ReadFile(s.path(caFile))
	if err != nil {
		return fmt.Errorf("read the CA: %w; %s", err, startOver)
	}
	have, err := CAHash(text)
	if err != nil {
		return fmt.Errorf("%s is damaged: %w; %s", s.path(caFile), err, startOver)
	}
	if have != caHash {
		return s.otherCluster(old.Cluster, "the join token's cluster")
	}
	return nil
}

// clusterRecord is cluster.json.
type clusterRecord struct {
	Identity
	Segment        string   `json:"segment"`
	GossipKeys     [][]byte `json:"gossip_keys"`
	GossipRevision uint64   `json:"gossip_revision,omitempty"`
	ReleaseKeys    []string `json:"release_keys"`
	KeyPolicy
	Servers    []string  `json:"servers"`
	GossipJoin []string  `json:"gossip_join"`
	Also       []Segment `json:"also,omitempty"`
	Relays     []string  `json:"relays,omitempty"`
}

// record reads cluster.json; ErrNotEnrolled when there is none.
func (s *Store) record() (clusterRecord, error) {
	var r clusterRecord
	text, err := os.ReadFile(s.path(clusterFile))
	if errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("%s: %w", filepath.Dir(s.dir), ErrNotEnrolled)
	}
	if err != nil {
		return r, unreadable(err)
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s is damaged: %w; %s", s.path(clusterFile), err, startOver)
	}
	return r, nil
}

// Load returns the credentials of a host that has joined; ErrNotEnrolled when it
// has not. It does not mind an expired certificate: its peers will.
func (s *Store) Load() (Credentials, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.record()
	if err != nil {
		return Credentials{}, fmt.Errorf("load identity: %w", err)
	}
	hostID, key, err := s.hostKey()
	if err != nil {
		return Credentials{}, fmt.Errorf("load identity: %w", err)
	}
	ca, err := os.ReadFile(s.path(caFile))
	if err != nil {
		return Credentials{}, fmt.Errorf("load identity: %w; %s", err, startOver)
	}
	certText, err := os.ReadFile(s.path(certFile))
	if err != nil {
		return Credentials{}, fmt.Errorf("load identity: %w; %s", err, startOver)
	}
	cert, err := parseCertificate(certText)
	if err != nil {
		return Credentials{}, fmt.Errorf("load identity: %s is damaged: %w; %s", s.path(certFile), err, startOver)
	}
	caCert, err := parseCertificate(ca)
	if err != nil {
		return Credentials{}, fmt.Errorf("load identity: %s is damaged: %w; %s", s.path(caFile), err, startOver)
	}
	// As of the first moment of both: Load is about damage, not about age. The
	// CA's may be the later one, where the issuer's clock runs behind its maker's.
	first := cert.NotBefore
	if caCert.NotBefore.After(first) {
		first = caCert.NotBefore
	}
	// The certificate says who this host is; cluster.json may be older, by a Save
	// that was cut off between the two.
	id, err := certified(r.Cluster, ca, certText, hostID, key, first)
	if err != nil {
		return Credentials{}, fmt.Errorf("load identity: the files in %s do not fit each other: %w; %s", s.dir, err, startOver)
	}
	if verifier, err := NewVerifier(r.Cluster, ca); err == nil {
		_ = s.denials.load(verifier) // a damaged one is made good by the next that a server sends
	}
	return Credentials{
		Denials:  s.denials,
		Identity: id, Key: key, CertPEM: certText, CAPEM: ca, Segment: r.Segment,
		GossipKeys: r.GossipKeys, ReleaseKeys: r.ReleaseKeys, KeyPolicy: r.KeyPolicy, Servers: r.Servers, GossipJoin: r.GossipJoin, Also: r.Also,
		GossipRevision: r.GossipRevision, Relays: r.Relays,
	}, nil
}
