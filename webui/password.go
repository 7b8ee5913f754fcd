package webui

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Passwords are kept as argon2id hashes in PHC string format,
//
//	$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH
//
// with the parameters of OWASP's password storage cheat sheet. They are read
// back from the hash, so they can be raised without anybody losing a password.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16 // bytes
	argonKey     = 32 // bytes

	maxArgonMemory = 256 << 10 // KiB; a hash that asks for more is refused
	maxArgonTime   = 16

	minPasswordBytes = 8
	maxPasswordBytes = 1024
)

func checkPasswordRules(password string) error {
	if len(password) < minPasswordBytes || len(password) > maxPasswordBytes {
		return fmt.Errorf("the password has %d bytes; give %d to %d", len(password), minPasswordBytes, maxPasswordBytes)
	}
	return nil
}

// idKey is the costly part; tests count the calls.
var idKey = argon2.IDKey

// HashPassword returns the hash to keep of a password. The password has 8 to
// 1024 bytes.
func HashPassword(password string) (string, error) {
	if err := checkPasswordRules(password); err != nil {
		return "", err
	}
	salt := make([]byte, argonSalt)
	if _, err := rand.Read(salt); err != nil {
		return "", err
	}
	key := idKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	return formatHash(salt, key), nil
}

func formatHash(salt, key []byte) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key))
}

var errBadHash = errors.New("not an argon2id hash that this program reads")

// CheckPassword tells whether a password is the one that was hashed. It returns
// an error when the hash is damaged.
func CheckPassword(hash, password string) (bool, error) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return false, errBadHash
	}
	var memory, time uint32
	var threads uint8
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); n != 3 || err != nil {
		return false, errBadHash
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	want, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(want) < 16 || len(want) > 64 ||
		memory == 0 || memory > maxArgonMemory || time == 0 || time > maxArgonTime || threads == 0 {
		return false, errBadHash
	}
	if len(password) > maxPasswordBytes {
		return false, nil
	}
	got := idKey([]byte(password), salt, time, memory, threads, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}
