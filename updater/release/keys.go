package release

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"aead.dev/minisign"
)

// KeysProduct is what a key statement must name, so that no signature over one
// is good for a release, nor the other way round.
const KeysProduct = "moult keys"

// Limits of key sets and of the statements that change them.
const (
	MaxKeys           = 8 // keys of a set, and signatures in a signature file
	MaxStatementBytes = 4 << 10
)

var (
	// ErrStatementKnown: the statement's number is not above the set's own.
	ErrStatementKnown = errors.New("the key statement is not newer than the keys that are pinned")
	// ErrStatementGap: statements in between are missing.
	ErrStatementGap = errors.New("a key statement in between is missing")
)

// KeySet is the release keys that a host believes, and how many of them have to
// sign what it installs. The zero set believes nothing. A set is a value: treat
// Keys as read-only.
type KeySet struct {
	Number    uint64   `json:"number"`    // of the statement that made it; 0: given when the host joined
	Threshold int      `json:"threshold"` // 0 counts as 1
	Keys      []string `json:"keys"`      // minisign public keys: a line, or a whole key file
}

// Pinned is the set that believes any one of some keys.
func Pinned(keys ...string) KeySet { return KeySet{Threshold: 1, Keys: keys} }

// Needed is how many keys have to sign, at least 1.
func (k KeySet) Needed() int { return max(k.Threshold, 1) }

// Equal tells whether two sets are the same, spelling of the keys included.
func (k KeySet) Equal(o KeySet) bool {
	return k.Number == o.Number && k.Needed() == o.Needed() && slices.Equal(k.Keys, o.Keys)
}

// Check refuses a set that cannot be pinned: 1 to MaxKeys different keys, as
// many of them needed as there are at most.
func (k KeySet) Check() error {
	if len(k.Keys) == 0 || len(k.Keys) > MaxKeys {
		return fmt.Errorf("keys: there are %d; give 1 to %d", len(k.Keys), MaxKeys)
	}
	if k.Needed() > len(k.Keys) || k.Threshold < 0 {
		return fmt.Errorf("threshold: %d of %d keys cannot sign; give 1 to %d", k.Threshold, len(k.Keys), len(k.Keys))
	}
	seen := map[[keyBytes]byte]bool{}
	for i, text := range k.Keys {
		line, err := ParsePublicKey(text)
		if err != nil {
			return fmt.Errorf("keys: the %d. of them: %w", i+1, err)
		}
		id := keyOf(line)
		if seen[id] {
			return fmt.Errorf("keys: %s is there twice, and would count as two signers", line)
		}
		seen[id] = true
	}
	return nil
}

// keyBytes is an ed25519 public key, which a key line ends with.
const keyBytes = 32

// keyOf is the key in a key line. The id before it is only a name: nothing
// proves it, so two lines of one key are one signer.
func keyOf(line string) (k [keyBytes]byte) {
	if raw, err := base64.StdEncoding.DecodeString(line); err == nil && len(raw) >= keyBytes {
		copy(k[:], raw[len(raw)-keyBytes:])
	}
	return k
}

// verify tells whether enough of the keys signed text. One that is malformed
// counts for nothing. Returns ErrNoReleaseKey or ErrBadSignature, perhaps wrapped.
func (k KeySet) verify(text, signature []byte) error {
	blocks := splitSignatures(signature)
	if len(blocks) > MaxKeys {
		return fmt.Errorf("%w: it holds %d signatures; at most %d are read", ErrBadSignature, len(blocks), MaxKeys)
	}
	usable, signers := map[[keyBytes]byte]bool{}, map[[keyBytes]byte]bool{}
	for _, pinned := range k.Keys {
		var key minisign.PublicKey
		if key.UnmarshalText([]byte(strings.TrimSpace(pinned))) != nil {
			continue
		}
		id := keyOf(key.String())
		usable[id] = true
		if !signers[id] && slices.ContainsFunc(blocks, func(b []byte) bool { return minisign.Verify(key, text, b) }) {
			signers[id] = true
		}
	}
	switch n := len(signers); {
	case len(usable) == 0:
		return ErrNoReleaseKey
	case n == 0:
		return ErrBadSignature
	case n < k.Needed():
		return fmt.Errorf("%w: %d signed, %d have to", ErrTooFewSignatures, n, k.Needed())
	}
	return nil
}

const signatureStart = "untrusted comment:"

// splitSignatures returns the signatures of a signature file, which are one
// after the other in it, four lines each. The stock minisign reads the first.
func splitSignatures(text []byte) (blocks [][]byte) {
	start := 0
	for at := 1; at < len(text); at++ {
		if text[at-1] == '\n' && bytes.HasPrefix(text[at:], []byte(signatureStart)) {
			blocks = append(blocks, text[start:at])
			start = at
		}
	}
	return append(blocks, text[start:])
}

// Statement replaces a set of release keys by another one. It is signed by the
// keys that it replaces, as many as their set asks for, and takes effect
// wherever that set is pinned: who holds no release key can neither add one nor
// take one out, servers included. It is read as strictly as a manifest.
type Statement struct {
	Product   string    `json:"product"` // KeysProduct
	Cluster   string    `json:"cluster"` // the cluster's id: keys may be shared between clusters, statements are not
	Number    uint64    `json:"number"`  // one more than that of the set it replaces
	Threshold int       `json:"threshold"`
	Keys      []string  `json:"keys"` // minisign public key lines
	Created   time.Time `json:"created"`
}

// SignedStatement is a statement as it travels.
type SignedStatement struct {
	Statement []byte `json:"statement"`
	Signature []byte `json:"signature"`
}

// ParseStatement reads a statement strictly. It does not look at the signature.
func ParseStatement(text []byte) (Statement, error) {
	var s Statement
	if len(text) > MaxStatementBytes {
		return Statement{}, fmt.Errorf("the key statement is %d bytes; at most %d are read", len(text), MaxStatementBytes)
	}
	if err := decodeStrictly(text, &s); err != nil {
		return Statement{}, fmt.Errorf("the key statement does not parse: %w", err)
	}
	switch {
	case s.Product != KeysProduct:
		return Statement{}, fmt.Errorf("product: the statement is for %q, not %q", s.Product, KeysProduct)
	case s.Cluster == "" || len(s.Cluster) > maxVersionBytes:
		return Statement{}, errors.New("cluster: give the id of the cluster whose keys these are; `moult key list` shows it")
	case s.Number == 0:
		return Statement{}, errors.New("number: it is 0; statements are numbered from 1")
	case s.Threshold < 1:
		return Statement{}, fmt.Errorf("threshold: it is %d; at least one key has to sign", s.Threshold)
	}
	return s, s.Set().Check()
}

// Set is the key set that the statement makes.
func (s Statement) Set() KeySet {
	return KeySet{Number: s.Number, Threshold: s.Threshold, Keys: s.Keys}
}

// Advance returns the set that a statement makes of this one. It returns
// ErrStatementKnown and ErrStatementGap, wrapped, for a statement that does not
// follow on this set, and ErrBadSignature for one that it did not sign.
func (k KeySet) Advance(cluster string, signed SignedStatement) (KeySet, error) {
	s, err := ParseStatement(signed.Statement)
	switch {
	case err != nil:
		return KeySet{}, err
	case len(signed.Signature) > MaxSignatureBytes:
		return KeySet{}, fmt.Errorf("the key statement's signature is %d bytes; at most %d are read", len(signed.Signature), MaxSignatureBytes)
	case s.Cluster != cluster:
		return KeySet{}, fmt.Errorf("cluster: the key statement is for cluster %q, this is %q", s.Cluster, cluster)
	case s.Number <= k.Number:
		return KeySet{}, fmt.Errorf("%w (number %d, pinned %d)", ErrStatementKnown, s.Number, k.Number)
	case s.Number > k.Number+1:
		return KeySet{}, fmt.Errorf("%w (number %d, pinned %d)", ErrStatementGap, s.Number, k.Number)
	}
	if err := k.verify(signed.Statement, signed.Signature); err != nil {
		return KeySet{}, fmt.Errorf("key statement %d: %w", s.Number, err)
	}
	return s.Set(), nil
}

// SignStatement writes a statement and signs it with one key.
func SignStatement(secretKey string, s Statement) (SignedStatement, error) {
	s.Product, s.Created = KeysProduct, s.Created.UTC().Truncate(time.Second)
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return SignedStatement{}, err
	}
	text = append(text, '\n')
	if _, err := ParseStatement(text); err != nil {
		return SignedStatement{}, err
	}
	signature, err := signText(secretKey, text, fmt.Sprintf("%s %d", KeysProduct, s.Number))
	return SignedStatement{Statement: text, Signature: signature}, err
}

// AddSignature adds a key's signature over text to a signature file. The text
// must be a manifest or a key statement. A file that holds one by this key
// already stays as it is.
func AddSignature(secretKey string, text, signature []byte) ([]byte, error) {
	comment := ""
	if m, err := Parse(text); err == nil {
		comment = Product + " " + m.Version
	} else if s, err2 := ParseStatement(text); err2 == nil {
		comment = fmt.Sprintf("%s %d", KeysProduct, s.Number)
	} else {
		return nil, err
	}
	public, err := PublicKeyOf(secretKey)
	if err != nil {
		return nil, err
	}
	if len(signature) > 0 && Pinned(public).verify(text, signature) == nil {
		return signature, nil
	}
	if n := len(splitSignatures(signature)); len(signature) > 0 && n >= MaxKeys {
		return nil, fmt.Errorf("there are %d signatures already; at most %d are read", n, MaxKeys)
	}
	own, err := signText(secretKey, text, comment)
	if err != nil {
		return nil, err
	}
	if len(signature) > 0 && !bytes.HasSuffix(signature, []byte("\n")) {
		signature = append(bytes.Clone(signature), '\n')
	}
	return append(bytes.Clone(signature), own...), nil
}

// PublicKeyOf is the public key line of a secret key.
func PublicKeyOf(secretKey string) (string, error) {
	key, err := parseSecretKey(secretKey)
	if err != nil {
		return "", err
	}
	public, ok := key.Public().(minisign.PublicKey)
	if !ok {
		return "", errors.New("the release key has no public half")
	}
	return public.String(), nil
}
