package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"aead.dev/minisign"
)

// fixedKeys are the same in each process of a fuzz run, so that an input means
// the same to all of them.
func fixedKeys(f *testing.F) (a, b signer) {
	f.Helper()
	make1 := func(fill byte) signer {
		_, key, err := minisign.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{fill}, 64)))
		must(f, err)
		secret, err := secretText(key)
		must(f, err)
		public, err := PublicKeyOf(secret)
		must(f, err)
		return signer{public, secret}
	}
	return make1(1), make1(2)
}

// With the signature of one key out of two, no bytes make a host install what
// two have to sign.
func FuzzSignature(f *testing.F) {
	a, b := fixedKeys(f)
	text := mustJSON(f, goodManifest())
	one := mustSign(f, a.secret, text)
	f.Add(one)
	f.Add(append(bytes.Clone(one), one...))
	f.Add(signAnything(f, a.secret, text)) // the legacy kind
	f.Add(append(bytes.Clone(one), mustSign(f, b.secret, mustJSON(f, Manifest{
		Product: Product, Version: "9", Number: 9, Created: created, Artifacts: goodManifest().Artifacts,
	}))...))
	f.Add([]byte("untrusted comment: x\nRUQ=\ntrusted comment: y\n\n"))
	f.Fuzz(func(t *testing.T, signature []byte) {
		if m, err := Verify(KeySet{Threshold: 2, Keys: lines(a, b)}, text, signature); err == nil {
			t.Fatalf("taken with one signature of two: %+v", m)
		}
		if _, err := Verify(Pinned(b.public), text, signature); err == nil {
			t.Fatal("taken without a signature")
		}
		// Two files in a row hold what each of them holds.
		if n, m := len(splitSignatures(signature)), len(splitSignatures(append(bytes.Clone(signature), '\n'))); m < n {
			t.Fatalf("%d signatures, then %d", n, m)
		}
	})
}

// A statement that is followed is one of those that the key signed.
func FuzzStatement(f *testing.F) {
	a, b := fixedKeys(f)
	from := Pinned(a.public)
	good := mustState(f, Statement{Number: 1, Threshold: 1, Keys: lines(a, b)}, a)
	f.Add(good.Statement, good.Signature)
	f.Add([]byte(`{"product":"moult keys","cluster":"c1","number":1,"threshold":1,"keys":["RWQ"],"created":"2026-03-01T12:00:00Z"}`), []byte{})
	f.Add(good.Statement, mustState(f, Statement{Number: 1, Threshold: 1, Keys: lines(b)}, b).Signature)
	f.Fuzz(func(t *testing.T, text, signature []byte) {
		if set, err := from.Advance("c1", SignedStatement{text, signature}); err == nil && !bytes.Equal(text, good.Statement) {
			t.Fatalf("followed: %+v", set)
		}
		s, err := ParseStatement(text)
		if err != nil {
			return
		}
		if err := s.Set().Check(); err != nil || s.Number == 0 || s.Cluster == "" {
			t.Fatalf("parsed out of bounds: %+v, %v", s, err)
		}
		again, err := ParseStatement(mustJSON(t, s))
		if err != nil || !again.Set().Equal(s.Set()) {
			t.Fatalf("again: %+v, %v", again, err)
		}
	})
}

func FuzzKeyFiles(f *testing.F) {
	a, _ := fixedKeys(f)
	f.Add(a.public)
	f.Add(a.secret)
	f.Add("untrusted comment: minisign public key 1\n" + a.public + "\r\n")
	f.Add(lockedKey)
	f.Fuzz(func(t *testing.T, text string) {
		if line, err := ParsePublicKey(text); err == nil {
			again, err := ParsePublicKey(line)
			if err != nil || again != line || strings.ContainsAny(line, " \r\n") {
				t.Fatalf("%q reads as %q, %v", line, again, err)
			}
		}
		locked := KeyLocked(text)
		public, err := PublicKeyOf(text)
		switch {
		case locked != errors.Is(err, ErrEncryptedKey):
			t.Fatalf("locked: %t, %v", locked, err)
		case err == nil && Pinned(public).Check() != nil:
			t.Fatalf("a key without a public half: %q", public)
		}
	})
}

// A release directory is read as whoever sends one likes to fill it.
func FuzzReadDir(f *testing.F) {
	o, _ := binaries(f)
	for p := range o.Files {
		if p != (Platform{"linux", "amd64"}) {
			delete(o.Files, p)
		}
	}
	m, err := Build(o)
	must(f, err)
	text, signature := mustRead(f, filepath.Join(o.Dir, ManifestFile)), mustRead(f, filepath.Join(o.Dir, SignatureFile))
	first := FileName(m.Version, Platform{m.Artifacts[0].OS, m.Artifacts[0].Arch})
	f.Add(text, signature, mustRead(f, filepath.Join(o.Dir, first)))
	f.Add(bytes.Replace(text, []byte(`"linux"`), []byte(`"../../linux"`), 1), signature, []byte("x"))
	f.Add([]byte("{}"), []byte{}, []byte{})
	// Of whatever binary: else hardly any input gets past its digest.
	named := regexp.MustCompile(`"sha256":\s*"[0-9a-f]*"`).ReplaceAll(text, []byte(`"sha256":"@sha256"`))
	named = regexp.MustCompile(`"size":\s*[0-9]+`).ReplaceAll(named, []byte(`"size":@size`))
	f.Add(named, signature, linuxELF(62))
	f.Fuzz(func(t *testing.T, manifest, signature, binary []byte) {
		sum := sha256.Sum256(binary)
		manifest = bytes.ReplaceAll(manifest, []byte("@sha256"), []byte(hex.EncodeToString(sum[:])))
		manifest = bytes.ReplaceAll(manifest, []byte("@size"), []byte(strconv.Itoa(len(binary))))
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, ManifestFile), manifest, 0o600))
		must(t, os.WriteFile(filepath.Join(dir, SignatureFile), signature, 0o600))
		must(t, os.WriteFile(filepath.Join(dir, first), binary, 0o600))
		d, err := ReadDir(dir)
		if err != nil {
			return
		}
		for _, a := range d.Parsed.Artifacts {
			if filepath.Dir(d.ArtifactPath(a)) != dir {
				t.Fatalf("an artifact outside of the directory: %s", d.ArtifactPath(a))
			}
			if digest, _, err := digestOf(d.ArtifactPath(a), a); err != nil || digest != a.SHA256 {
				t.Fatalf("read with another binary: %s, %v", digest, err)
			}
		}
	})
}

// The platform of a binary is told from its header, whatever stands there.
func FuzzBinaryPlatforms(f *testing.F) {
	f.Add(linuxELF(62))
	f.Add(peFile(0x8664))
	f.Add(machO(0x100000c))
	f.Add(universal(0x1000007, 0x100000c))
	f.Add([]byte("#!/bin/sh\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		platforms, err := BinaryPlatforms(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, p := range platforms {
			if p.Arch == "" || p.OS == "" {
				t.Fatalf("half a platform: %+v", p)
			}
		}
	})
}
