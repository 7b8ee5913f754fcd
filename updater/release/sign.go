package release

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"aead.dev/minisign"
)

// Verify returns the manifest if enough of the pinned keys signed it. A key that
// is malformed counts for nothing. Returns ErrBadSignature, ErrTooFewSignatures,
// ErrNoReleaseKey, or what is wrong with a manifest that is signed but malformed.
func Verify(keys KeySet, manifest, signature []byte) (Manifest, error) {
	if len(manifest) > MaxManifestBytes || len(signature) > MaxSignatureBytes {
		return Manifest{}, fmt.Errorf("manifest or signature is too long: at most %d and %d bytes are read", MaxManifestBytes, MaxSignatureBytes)
	}
	if err := keys.verify(manifest, signature); err != nil {
		return Manifest{}, err
	}
	return Parse(manifest)
}

// Sign returns the minisign signature file of a manifest. The secret key is the
// text that GenerateKey, `minisign -GW` or UnlockKey gave. The manifest must be
// one that Parse takes. Returns ErrEncryptedKey for a key under a password.
func Sign(secretKey string, manifest []byte) ([]byte, error) {
	m, err := Parse(manifest)
	if err != nil {
		return nil, err
	}
	return signText(secretKey, manifest, Product+" "+m.Version)
}

// signText signs bytes; comment is under the signature too.
func signText(secretKey string, text []byte, comment string) ([]byte, error) {
	key, err := parseSecretKey(secretKey)
	if err != nil {
		return nil, err
	}
	// Through a Reader the signature is prehashed, which is what the minisign
	// program makes; SignWithComments would make the legacy kind.
	r := minisign.NewReader(bytes.NewReader(text))
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	signature := r.SignWithComments(key, comment, "signature by a moult release key")
	if !bytes.HasSuffix(signature, []byte("\n")) {
		signature = append(signature, '\n')
	}
	// An unencrypted key file carries no checksum that is looked at: a damaged one
	// would sign, and every host refuse.
	if public, ok := key.Public().(minisign.PublicKey); !ok || !minisign.Verify(public, text, signature) {
		return nil, errors.New("the release key is damaged: its own signature does not verify; restore the file from a backup")
	}
	return signature, nil
}

// GenerateKey makes a key pair as the texts of minisign's key files. The secret
// key is not encrypted: keep the file readable by its owner only, or LockKey it.
func GenerateKey() (public, secret string, err error) {
	pub, priv, err := minisign.GenerateKey(nil)
	if err != nil {
		return "", "", err
	}
	p, err := pub.MarshalText()
	if err != nil {
		return "", "", err
	}
	secret, err = secretText(priv)
	return strings.TrimRight(string(p), "\n") + "\n", secret, err
}

// LockKey encrypts a secret key with a password, as minisign does. It takes
// about a second and 1 GB of memory, on purpose.
func LockKey(secretKey, password string) (string, error) {
	if password == "" {
		return "", errors.New("the password is empty; leave the key as it is, or give a password")
	}
	key, err := parseSecretKey(secretKey)
	if err != nil {
		return "", err
	}
	text, err := minisign.EncryptKey(password, key)
	if err != nil {
		return "", fmt.Errorf("encrypt release key: %w", err)
	}
	return strings.TrimRight(string(text), "\n") + "\n", nil
}

// UnlockKey decrypts what LockKey or the minisign program encrypted. A key
// that is not encrypted is returned as it is. As costly as LockKey.
func UnlockKey(secretKey, password string) (string, error) {
	if !KeyLocked(secretKey) {
		return secretKey, nil
	}
	key, err := minisign.DecryptKey(password, []byte(strings.TrimSpace(secretKey)))
	if err != nil {
		return "", fmt.Errorf("unlock release key: %w; is the password right?", err)
	}
	return secretText(key)
}

// KeyLocked tells whether a secret key is under a password.
func KeyLocked(secretKey string) bool {
	return len(secretKey) <= maxKeyTextBytes && minisign.IsEncrypted([]byte(strings.TrimSpace(secretKey)))
}

func secretText(key minisign.PrivateKey) (string, error) {
	text, err := key.MarshalText()
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(text), "\n") + "\n", nil
}

func parseSecretKey(text string) (minisign.PrivateKey, error) {
	var key minisign.PrivateKey
	if len(text) > maxKeyTextBytes {
		return key, fmt.Errorf("a release secret key is at most %d bytes, this is %d; make one with: moult key generate", maxKeyTextBytes, len(text))
	}
	if KeyLocked(text) {
		return key, ErrEncryptedKey
	}
	if err := key.UnmarshalText([]byte(strings.TrimSpace(text))); err != nil {
		return key, fmt.Errorf("this is not a release secret key: %w; make one with: moult key generate", err)
	}
	return key, nil
}

// ParsePublicKey reads a public key file, or just its key line, and returns the
// line.
func ParsePublicKey(text string) (string, error) {
	var key minisign.PublicKey
	if len(text) > maxKeyTextBytes {
		return "", fmt.Errorf("a release public key is at most %d bytes, this is %d", maxKeyTextBytes, len(text))
	}
	if err := key.UnmarshalText([]byte(strings.TrimSpace(text))); err != nil {
		return "", fmt.Errorf("this is not a minisign public key: %w; give the .pub file that `moult key generate` wrote", err)
	}
	return key.String(), nil
}
