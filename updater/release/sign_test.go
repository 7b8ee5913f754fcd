package release

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"
)

// signAnything signs bytes that Sign would refuse.
func signAnything(t testing.TB, secret string, text []byte) []byte {
	t.Helper()
	key, err := parseSecretKey(secret)
	must(t, err)
	return minisign.Sign(key, text)
}

func TestMistypedKeys(t *testing.T) {
	public, secret := mustKeys(t)
	text := mustJSON(t, goodManifest())
	for name, tc := range map[string]struct{ key, says string }{
		"nothing":        {"", "moult key generate"},
		"the public key": {public, "moult key generate"},
		"cut off":        {secret[:len(secret)/2], "moult key generate"},
		"too long":       {secret + strings.Repeat("\n", maxKeyTextBytes), "at most"},
	} {
		if _, err := Sign(tc.key, text); err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), strings.Split(secret, "\n")[1]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tc := range map[string]struct{ key, says string }{
		"nothing":        {"", "the .pub file"},
		"the secret key": {secret, "the .pub file"},
		"too long":       {public + strings.Repeat("\n", maxKeyTextBytes), "at most"},
	} {
		if _, err := ParsePublicKey(tc.key); err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), strings.Split(secret, "\n")[1]) {
			t.Errorf("public, %s: %v", name, err)
		}
	}
	line, err := ParsePublicKey("\n" + public + "\r\n")
	must(t, err)
	if again, err := ParsePublicKey(line); err != nil || again != line || strings.ContainsAny(line, "\n ") {
		t.Errorf("the key's line is %q, %v", line, err)
	}
}

// A key file with a flipped bit must not sign what every host then refuses.
func TestDamagedSecretKey(t *testing.T) {
	public, secret := mustKeys(t)
	text := mustJSON(t, goodManifest())
	comment, line, _ := strings.Cut(strings.TrimSpace(secret), "\n")
	raw, err := base64.StdEncoding.DecodeString(line)
	must(t, err)
	const keyAt, keyBytes = 62, 64 // behind the algorithms, the salt, the limits and the key's id
	for i := range keyBytes {
		damaged := bytes.Clone(raw)
		damaged[keyAt+i] ^= 1
		signature, err := Sign(comment+"\n"+base64.StdEncoding.EncodeToString(damaged)+"\n", text)
		if err == nil {
			_, err = Verify(Pinned(public), text, signature)
			t.Fatalf("byte %d of the key altered: it signs, and hosts say: %v", i, err)
		}
		if !strings.Contains(err.Error(), "backup") {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

// program is Debian's minisign, or the test ends here.
func program(t *testing.T) func(stdin string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("minisign")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("minisign is not installed; CI has to have it: apt-get install minisign")
		}
		t.Skip("minisign is not installed; apt-get install minisign to run this")
	}
	return func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), path, args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	must(t, os.WriteFile(path, content, 0o600))
}

// What moult signs, minisign verifies: keys, signatures, and refusals.
func TestMinisignVerifiesOurs(t *testing.T) {
	minisignProgram := program(t)
	public, secret := mustKeys(t)
	stranger, _ := mustKeys(t)
	dir := t.TempDir()
	manifest, pub, other := filepath.Join(dir, ManifestFile), filepath.Join(dir, "release.key.pub"), filepath.Join(dir, "other.pub")
	text := mustJSON(t, goodManifest())
	write(t, manifest, text)
	write(t, filepath.Join(dir, SignatureFile), mustSign(t, secret, text))
	write(t, pub, []byte(public))
	write(t, other, []byte(stranger))
	out, err := minisignProgram("", "-V", "-H", "-p", pub, "-m", manifest) // -H: prehashed only
	if err != nil || !strings.Contains(out, "moult 1.2.3") {
		t.Errorf("%v: %s", err, out)
	}
	line, err := ParsePublicKey(public)
	must(t, err)
	if out, err := minisignProgram("", "-V", "-P", line, "-m", manifest); err != nil {
		t.Errorf("by the key's line: %v: %s", err, out)
	}
	if out, err := minisignProgram("", "-V", "-p", other, "-m", manifest); err == nil {
		t.Errorf("another key: %s", out)
	}
	write(t, manifest, bytes.Replace(text, []byte(`"number":7`), []byte(`"number":8`), 1))
	if out, err := minisignProgram("", "-V", "-p", pub, "-m", manifest); err == nil {
		t.Errorf("an altered manifest: %s", out)
	}
}

// What minisign signs, moult verifies: with a key that minisign made, and with
// one that moult made; prehashed, and the legacy kind.
func TestWeVerifyMinisigns(t *testing.T) {
	minisignProgram := program(t)
	dir := t.TempDir()
	manifest := filepath.Join(dir, ManifestFile)
	text := mustJSON(t, goodManifest())
	write(t, manifest, text)
	key, pub := filepath.Join(dir, "theirs.key"), filepath.Join(dir, "theirs.pub")
	out, err := minisignProgram("", "-G", "-W", "-s", key, "-p", pub)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ourPublic, ourSecret := mustKeys(t)
	ours := filepath.Join(dir, "ours.key")
	write(t, ours, []byte(ourSecret))
	for name, tc := range map[string]struct {
		key, public string
		args        []string
	}{
		"their key":         {key, string(mustRead(t, pub)), nil},
		"their key, legacy": {key, string(mustRead(t, pub)), []string{"-l"}},
		"our key":           {ours, ourPublic, nil},
	} {
		args := append([]string{"-S", "-W", "-s", tc.key, "-m", manifest, "-t", "by hand"}, tc.args...)
		if out, err := minisignProgram("", args...); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
			continue
		}
		signature := mustRead(t, filepath.Join(dir, SignatureFile))
		if m, err := Verify(Pinned(ourPublic+"x", tc.public), text, signature); err != nil || m.Number != 7 {
			t.Errorf("%s: %v", name, err)
		}
		altered := bytes.Replace(text, []byte(`"number":7`), []byte(`"number":8`), 1)
		if _, err := Verify(Pinned(tc.public), altered, signature); !errors.Is(err, ErrBadSignature) {
			t.Errorf("%s, altered: %v", name, err)
		}
	}
	// And moult signs with minisign's key.
	signature := mustSign(t, string(mustRead(t, key)), text)
	if _, err := Verify(Pinned(string(mustRead(t, pub))), text, signature); err != nil {
		t.Errorf("signed with minisign's key: %v", err)
	}
}

// A key that Debian's minisign made, under the password "pw".
const (
	lockedKey       = "untrusted comment: minisign encrypted secret key\nRWRTY0IyWKE0lMambNbVRTl1hFpf9hpmV0w1Bq3u3ycGhILalp0AAAACAAAAAAAAAEAAAAAAfN8aByUAyKIhv46HrugsuEOfV9c/QY7pC333UURFWfuv0wcMz7OShNV3lmu4bkLCKFD3cg1W6/Hd6DTb1Lbrb8K0Trqfrnygbz1li919Us50/e2XAbM0EaOAWbdUtG0gTwOvELpgpu0=\n"
	lockedPublicKey = "RWR3w7Y1x8NCko1bVLp3myOR44slgl1GQAeVy6g4bCfD655IRyw3o0RD"
)

func TestKeyUnderAPassword(t *testing.T) {
	if !KeyLocked(lockedKey) {
		t.Error("the key does not count as encrypted")
	}
	_, err := Sign(lockedKey, mustJSON(t, goodManifest()))
	if !errors.Is(err, ErrEncryptedKey) || !strings.Contains(err.Error(), "minisign -C -W -s COPY") {
		t.Errorf("sign: %v", err)
	}
	o, _ := binaries(t)
	o.SecretKey = lockedKey
	if _, err := Build(o); !errors.Is(err, ErrEncryptedKey) {
		t.Errorf("build: %v", err)
	}
	_, secret := mustKeys(t)
	if same, err := UnlockKey(secret, ""); err != nil || same != secret || KeyLocked(secret) {
		t.Errorf("a key without a password: %v", err)
	}
	if _, err := LockKey(secret, ""); err == nil || !strings.Contains(err.Error(), "give a password") {
		t.Errorf("lock without a password: %v", err)
	}
	if _, err := LockKey(lockedPublicKey, "x"); err == nil {
		t.Error("a public key was locked")
	}
}

// Passwords cost a gigabyte and seconds each, by design of the format.
func TestPasswords(t *testing.T) {
	if os.Getenv("MOULT_LONG") == "" {
		t.Skip("five rounds of scrypt, each a gigabyte and seconds; MOULT_LONG=1 runs them")
	}
	minisignProgram := program(t)
	text := mustJSON(t, goodManifest())
	verifies := func(how, public, secret string) {
		t.Helper()
		if _, err := Verify(Pinned(public), text, mustSign(t, secret, text)); err != nil {
			t.Errorf("%s: %v", how, err)
		}
	}
	if _, err := UnlockKey(lockedKey, "wrong"); err == nil || !strings.Contains(err.Error(), "is the password right?") {
		t.Errorf("wrong password: %v", err)
	}
	unlocked, err := UnlockKey(lockedKey, "pw")
	must(t, err)
	verifies("minisign's, unlocked here", lockedPublicKey, unlocked)

	path := filepath.Join(t.TempDir(), "copy.key")
	write(t, path, []byte(lockedKey))
	if out, err := minisignProgram("pw\n", "-C", "-W", "-s", path); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	verifies("as the error says", lockedPublicKey, string(mustRead(t, path)))

	public, secret := mustKeys(t)
	locked, err := LockKey(secret, "open sesame")
	must(t, err)
	write(t, path, []byte(locked))
	if out, err := minisignProgram("open sesame\n", "-C", "-W", "-s", path); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	verifies("locked here, unlocked by minisign", public, string(mustRead(t, path)))
}
