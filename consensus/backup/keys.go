package backup

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// Limits of a passphrase, in bytes.
const (
	MinPassphrase = 8
	MaxPassphrase = 1024
)

// ErrWrongKey: the passphrase or key does not open the backup.
var ErrWrongKey = errors.New("the passphrase or key does not open the backup")

// Key is what a backup is encrypted with, and opened by.
type Key struct {
	recipient age.Recipient
	identity  age.Identity
}

// NewKey makes a key for one backup's way over the wire.
func NewKey() (key Key, public string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return Key{}, "", err
	}
	return Key{id.Recipient(), id}, id.Recipient().String(), nil
}

// Passphrase is a key made of a passphrase. To guess at one costs a second or so
// a try.
func Passphrase(text string) (Key, error) {
	if len(text) < MinPassphrase || len(text) > MaxPassphrase {
		return Key{}, fmt.Errorf("the passphrase has %d bytes; give %d to %d", len(text), MinPassphrase, MaxPassphrase)
	}
	to, err := age.NewScryptRecipient(text)
	if err != nil {
		return Key{}, err
	}
	from, err := age.NewScryptIdentity(text)
	return Key{to, from}, err
}

// ParseRecipient reads a public key, as age-keygen prints it: age1…
func ParseRecipient(text string) (Key, error) {
	found, err := age.ParseRecipients(strings.NewReader(text))
	if err != nil || len(found) != 1 || strings.ContainsAny(strings.TrimSpace(text), "\r\n") {
		return Key{}, fmt.Errorf("recipient %.80q is not one public key of age (age1…); make a pair with age-keygen", strings.TrimSpace(text))
	}
	return Key{recipient: found[0]}, nil
}

// ParseIdentity reads the secret key that age-keygen wrote.
func ParseIdentity(text string) (Key, error) {
	found, err := age.ParseIdentities(strings.NewReader(text))
	if err != nil || len(found) != 1 {
		return Key{}, errors.New("this is not a file with one secret key of age, as age-keygen writes it")
	}
	return Key{identity: found[0]}, nil
}

// Encrypt returns what encrypts onto w. Closing it writes the end, without which
// the file is refused; it does not close w.
func (k Key) Encrypt(w io.Writer) (io.WriteCloser, error) {
	if k.recipient == nil {
		return nil, errors.New("this key only opens backups")
	}
	return age.Encrypt(w, k.recipient)
}

// Decrypt returns a reader of what r holds. It errs with ErrWrongKey, or
// ErrDamaged when r is no age file; an error on reading is damage, too.
func (k Key) Decrypt(r io.Reader) (io.Reader, error) {
	if k.identity == nil {
		return nil, errors.New("this key only makes backups; the secret key opens them")
	}
	plain, err := age.Decrypt(r, k.identity)
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		return nil, fmt.Errorf("%w, or its first bytes are damaged: %w", ErrWrongKey, err)
	}
	if err != nil {
		return nil, damaged("its first bytes", err)
	}
	return plain, nil
}
