package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
)

// A deny-list names the hosts that were removed from a cluster and whose
// certificates have not ended. It is
//
//	ed25519 signature of the CA's key over "moult denied 1\n" and what follows
//	length and cluster id, epoch, number, count
//	count times: sha256 of the host's id, sha256 of its key, 16 bytes of each
//
// so that it may reach a host by whatever way. (epoch, number) only rise.

// deniedDomain keeps a signature over a deny-list from meaning anything else.
const deniedDomain = "moult denied 1\n"

// MaxDenied is how many hosts a deny-list holds: as many as fit into one message
// of the mesh.
const MaxDenied = 7000

const (
	deniedPrefix   = 16 // bytes kept of each sha256
	deniedEntry    = 2 * deniedPrefix
	maxDeniedBytes = ed25519.SignatureSize + 1 + maxIDBytes + 8 + 8 + 4 + MaxDenied*deniedEntry
)

// deniedFile keeps the newest deny-list in a store, as it was signed.
const deniedFile = "denied"

var (
	// ErrDenied says that a certificate is of a host that was removed.
	ErrDenied = errors.New("this host was removed from the cluster; to let it back in, delete the folder identity in its data directory and join it with a new token")
	// ErrOldDenyList says that a deny-list is older than the one that is followed.
	ErrOldDenyList = errors.New("the deny-list is older than the one that this host follows")
)

// DeniedHost is one host of a deny-list. Both its id and its key are denied.
type DeniedHost struct {
	HostID string
	Key    ed25519.PublicKey
}

// DenyList is what the CA's key signs.
type DenyList struct {
	Cluster string
	Epoch   uint64 // of the cluster
	Number  uint64 // rises with each change within an epoch
	Hosts   []DeniedHost
}

// SignDenyList makes the bytes that hosts take. Equal lists give equal bytes.
func (ca *CA) SignDenyList(l DenyList) ([]byte, error) {
	switch {
	case !validID(l.Cluster):
		return nil, fmt.Errorf("sign a deny-list: cluster id %q: give 1 to %d of a-z A-Z 0-9 . _ -", l.Cluster, maxIDBytes)
	case len(l.Hosts) > MaxDenied:
		return nil, fmt.Errorf("sign a deny-list of %d hosts; it holds at most %d", len(l.Hosts), MaxDenied)
	}
	body := append([]byte{byte(len(l.Cluster))}, l.Cluster...)
	body = binary.BigEndian.AppendUint64(body, l.Epoch)
	body = binary.BigEndian.AppendUint64(body, l.Number)
	body = binary.BigEndian.AppendUint32(body, uint32(len(l.Hosts)))
	for _, h := range l.Hosts {
		id, key := hashedID(h.HostID), hashedKey(h.Key)
		body = append(append(body, id[:]...), key[:]...)
	}
	return append(ed25519.Sign(ca.key, append([]byte(deniedDomain), body...)), body...), nil
}

type deniedHash [deniedPrefix]byte

func hashedID(id string) deniedHash {
	sum := sha256.Sum256([]byte(id))
	return deniedHash(sum[:deniedPrefix])
}

func hashedKey(key ed25519.PublicKey) deniedHash {
	sum := sha256.Sum256(key)
	return deniedHash(sum[:deniedPrefix])
}

// denySet is a deny-list that was verified.
type denySet struct {
	epoch, number uint64
	ids, keys     map[deniedHash]bool
	raw           []byte
}

// openDenyList reads a deny-list that one of these CAs signed for the verifier's
// cluster.
func (v *Verifier) openDenyList(raw []byte, by []trustedCA) (*denySet, error) {
	if len(raw) > maxDeniedBytes {
		return nil, fmt.Errorf("the deny-list is %d bytes; at most %d are read", len(raw), maxDeniedBytes)
	}
	if len(raw) < ed25519.SignatureSize || !signed(by, append([]byte(deniedDomain), raw[ed25519.SignatureSize:]...), raw[:ed25519.SignatureSize]) {
		return nil, errors.New("the deny-list is not signed by the cluster's CA")
	}
	malformed := errors.New("the deny-list is malformed; update this host's moult")
	b := raw[ed25519.SignatureSize:]
	if len(b) < 1 || len(b) < 1+int(b[0])+8+8+4 {
		return nil, malformed
	}
	cluster, b := string(b[1:1+b[0]]), b[1+b[0]:]
	if cluster != v.cluster {
		return nil, fmt.Errorf("the deny-list is of cluster %q, not %s", cluster, v.cluster)
	}
	set := &denySet{epoch: binary.BigEndian.Uint64(b), number: binary.BigEndian.Uint64(b[8:]), raw: bytes.Clone(raw)}
	count := binary.BigEndian.Uint32(b[16:])
	b = b[20:]
	if count > MaxDenied || len(b) != int(count)*deniedEntry {
		return nil, malformed
	}
	set.ids, set.keys = make(map[deniedHash]bool, count), make(map[deniedHash]bool, count)
	for ; len(b) > 0; b = b[deniedEntry:] {
		set.ids[deniedHash(b[:deniedPrefix])] = true
		set.keys[deniedHash(b[deniedPrefix:deniedEntry])] = true
	}
	return set, nil
}

func (v *Verifier) cas() (*caSet, error) {
	if v.refusal != nil {
		return nil, v.refusal
	}
	return v.trusted.set.Load(), nil
}

// Denials is the newest deny-list that a host has taken. Whoever verifies by the
// host's Credentials asks it each time. Nil denies nobody. Its methods are safe
// for concurrent use.
type Denials struct {
	dir string // of the store that keeps it

	mu  sync.Mutex // orders Take
	set atomic.Pointer[denySet]
}

// Take follows a deny-list from now on, once it is on the disk. It tells whether
// it is another one than before, and refuses what the verifier's CA did not sign
// and, with ErrOldDenyList, what would be a step back.
func (d *Denials) Take(v *Verifier, raw []byte) (news bool, err error) {
	by, err := v.cas()
	if err != nil {
		return false, err
	}
	set, err := v.openDenyList(raw, by.trusted)
	if err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.set.Load(); old != nil {
		switch {
		case bytes.Equal(old.raw[ed25519.SignatureSize:], set.raw[ed25519.SignatureSize:]):
			return false, nil // signed by another CA, maybe
		case set.epoch < old.epoch || set.epoch == old.epoch && set.number <= old.number:
			return false, ErrOldDenyList
		}
	}
	if err := writeFile(d.dir, deniedFile, set.raw); err != nil {
		return false, fmt.Errorf("keep the deny-list: %w", err)
	}
	d.set.Store(set)
	return true, nil
}

// load reads what Take kept. What is damaged is as good as missing: servers send
// the newest list to whoever does not say that it follows it.
func (d *Denials) load(v *Verifier) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.set.Load() != nil {
		return nil
	}
	raw, err := os.ReadFile(filepath.Join(d.dir, deniedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	by, err := v.cas()
	if err != nil {
		return err
	}
	// What lies here was verified once: its CA may have been retired since.
	set, err := v.openDenyList(raw, slices.Concat(by.trusted, by.retired))
	if err != nil {
		return err
	}
	d.set.Store(set)
	return nil
}

// Followed returns which deny-list is followed; zeros: none.
func (d *Denials) Followed() (epoch, number uint64) {
	if set := d.current(); set != nil {
		return set.epoch, set.number
	}
	return 0, 0
}

// Host tells whether a host id is denied.
func (d *Denials) Host(id string) bool {
	set := d.current()
	return set != nil && len(set.ids) > 0 && set.ids[hashedID(id)]
}

// denies tells whether a certificate of this host and key is denied.
func (d *Denials) denies(id string, key ed25519.PublicKey) bool {
	set := d.current()
	return set != nil && len(set.ids) > 0 && (set.ids[hashedID(id)] || set.keys[hashedKey(key)])
}

func (d *Denials) current() *denySet {
	if d == nil {
		return nil
	}
	return d.set.Load()
}
