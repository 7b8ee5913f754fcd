package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	tokenPrefix      = "MOULT1"
	tokenSecretBytes = 24
)

// Token is a parsed join token. Printing or logging it does not show the secret.
type Token struct {
	CAHash     string // sha256 of the CA certificate's DER, 64 lower-case hex digits
	SecretHash string // sha256 of the secret, 64 hex digits: what the cluster keeps
	secret     string
}

// String returns the token without its secret.
func (t Token) String() string { return tokenPrefix + "." + t.CAHash + ".(secret)" }

// GoString is String, for %#v.
func (t Token) GoString() string { return t.String() }

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// NewToken makes a join token for the cluster whose CA has this hash. The
// cluster keeps secretHash and the token's lifetime; the token itself is shown
// once, to the person who asked for it.
func NewToken(caHash string) (token, secretHash string, err error) {
	if !validHash(caHash) {
		return "", "", fmt.Errorf("make a join token: %q is no sha256 in hex", caHash)
	}
	raw := make([]byte, tokenSecretBytes)
	if _, err := rand.Read(raw); err != nil {
		return "", "", fmt.Errorf("make a join token: %w", err)
	}
	secret := base64.RawURLEncoding.EncodeToString(raw)
	return tokenPrefix + "." + strings.ToLower(caHash) + "." + secret, hashSecret(secret), nil
}

// ParseToken reads a join token; spaces and newlines around it are ignored. Its
// errors never quote the token.
func ParseToken(s string) (Token, error) {
	const next = "; copy the whole token, or create a new one with: moult token create"
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, errors.New("the join token is empty; create one on a server with: moult token create")
	}
	parts := strings.Split(s, ".")
	if parts[0] != tokenPrefix {
		return Token{}, fmt.Errorf("this is not a join token: it does not begin with %s.%s", tokenPrefix, next)
	}
	if len(parts) != 3 {
		return Token{}, fmt.Errorf("the join token has %d parts, not 3%s", len(parts), next)
	}
	if !validHash(parts[1]) {
		return Token{}, errors.New("the join token's CA hash is damaged" + next)
	}
	// The length in characters too: the decoder skips line breaks, which are what
	// a terminal puts into a token that it wraps, and the secret's hash would not.
	b, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(b) != tokenSecretBytes || len(parts[2]) != base64.RawURLEncoding.EncodedLen(tokenSecretBytes) {
		return Token{}, errors.New("the join token's secret is damaged" + next)
	}
	return Token{CAHash: strings.ToLower(parts[1]), SecretHash: hashSecret(parts[2]), secret: parts[2]}, nil
}

func validHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
