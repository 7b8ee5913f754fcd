// Package release is what a publisher signs offline: a manifest that names each
// platform's binary by length and sha256, and a minisign signature over the
// manifest's bytes. The stock minisign program signs and verifies the same files.
//
// A release directory holds three kinds of file:
//
//	manifest.json              what is released (Manifest)
//	manifest.json.minisig      the signature over manifest.json, byte for byte
//	moult-VERSION-OS-ARCH      one binary per platform; .exe on windows
//
// `moult release create` makes one with Build, `moult release publish` reads it
// with ReadDir, and every server and agent calls Verify before it believes a
// word of a manifest. Signatures are prehashed, as those of minisign 0.8 and
// later are; legacy ones verify too. The format: https://jedisct1.github.io/minisign/
//
// A manifest is read strictly, because it is the one document that everybody
// must understand alike: an unknown, misspelt or repeated field refuses it.
//
// The package has no state; everything in it is safe for concurrent use.
package release

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Product is what a manifest must name: a signature made for something else by
// the same key is no release of moult.
const Product = "moult"

// Limits of a manifest.
const (
	MaxManifestBytes  = 256 << 10
	MaxSignatureBytes = 4 << 10
	MaxArtifacts      = 64
	MaxArtifactBytes  = 1 << 30
	maxVersionBytes   = 64
	maxKeyTextBytes   = 4 << 10
	maxWordBytes      = 32
	maxNotesBytes     = 64 << 10
)

var (
	// ErrBadSignature: no pinned key signed these bytes.
	ErrBadSignature = errors.New("the signature is not by a pinned release key")
	// ErrTooFewSignatures: pinned keys signed, but fewer than have to.
	ErrTooFewSignatures = errors.New("too few of the pinned release keys signed; add one with: moult release sign")
	// ErrNoReleaseKey: nothing can be verified, because no valid key is pinned.
	ErrNoReleaseKey = errors.New("no release key is pinned; make one with `moult key generate` and give it to the first server with --release-key")
	// ErrEncryptedKey: the secret key needs its password first, see UnlockKey.
	ErrEncryptedKey = errors.New("the release key is under a password; make a copy of the file, take the password off the copy with `minisign -C -W -s COPY`, sign with that and delete it")
	// ErrMismatch: a release directory's file is not the one its manifest names.
	ErrMismatch = errors.New("the release's manifest and its files do not fit each other")
	// ErrWrongPlatform: a binary was built for another platform than it is released for.
	ErrWrongPlatform = errors.New("wrong platform")
)

// Artifact is one platform's binary.
type Artifact struct {
	OS     string `json:"os"`
	Arch   string `json:"arch"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // 64 lower-case hex digits
	// ChunkSize and ChunkList authorise parts, see Chunks. Both or none: what was
	// released without them is fetched whole.
	ChunkSize int64  `json:"chunk_size,omitempty"` // bytes
	ChunkList string `json:"chunk_list,omitempty"` // 64 lower-case hex digits
}

// Manifest is a release.
type Manifest struct {
	Product   string     `json:"product"`
	Version   string     `json:"version"`
	Number    uint64     `json:"number"`             // rises with each release
	Floor     uint64     `json:"floor,omitempty"`    // hosts go below it no more
	Rollback  bool       `json:"rollback,omitempty"` // may replace a higher number
	MinFrom   uint64     `json:"min_from,omitempty"` // the lowest number that it may replace
	Created   time.Time  `json:"created"`
	Expires   *time.Time `json:"expires,omitempty"` // no new installs after
	Notes     string     `json:"notes,omitempty"`
	Artifacts []Artifact `json:"artifacts"`
}

// Artifact returns the binary for a platform.
func (m Manifest) Artifact(os, arch string) (Artifact, bool) {
	for _, a := range m.Artifacts {
		if a.OS == os && a.Arch == arch {
			return a, true
		}
	}
	return Artifact{}, false
}

// Parse reads a manifest strictly: at most MaxManifestBytes, one JSON object,
// no field unknown or twice. It does not look at the signature.
func Parse(text []byte) (Manifest, error) {
	var m Manifest
	if len(text) > MaxManifestBytes {
		return Manifest{}, fmt.Errorf("the manifest is %d bytes; at most %d are read", len(text), MaxManifestBytes)
	}
	if err := decodeStrictly(text, &m); err != nil {
		return Manifest{}, fmt.Errorf("the manifest does not parse: %w", err)
	}
	if err := m.validate(); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

func (m Manifest) validate() error {
	switch {
	case m.Product != Product:
		return fmt.Errorf("product: the manifest is for %q, not %q", m.Product, Product)
	case !ValidVersion(m.Version):
		return fmt.Errorf("version %.100q: %s", m.Version, versionRule)
	case m.Number == 0:
		return errors.New("number: it is 0; releases are numbered from 1")
	case m.Floor > m.Number:
		return fmt.Errorf("floor: %d is above the release's own number %d, so no host could install it", m.Floor, m.Number)
	case m.MinFrom > m.Number && !m.Rollback:
		return fmt.Errorf("min_from: %d is above the release's own number %d, so it could replace no release but a newer one", m.MinFrom, m.Number)
	case len(m.Artifacts) == 0 || len(m.Artifacts) > MaxArtifacts:
		return fmt.Errorf("artifacts: there are %d; give 1 to %d", len(m.Artifacts), MaxArtifacts)
	case len(m.Notes) > maxNotesBytes:
		return fmt.Errorf("notes: they are %d bytes; at most %d", len(m.Notes), maxNotesBytes)
	}
	seen := map[Platform]bool{}
	for _, a := range m.Artifacts {
		platform := Platform{a.OS, a.Arch}
		switch {
		case !platform.valid():
			return fmt.Errorf("artifacts: the platform %q is malformed; give it as linux/amd64", platform)
		case seen[platform]:
			return fmt.Errorf("artifacts: %s is there twice", platform)
		case a.Size <= 0 || a.Size > MaxArtifactBytes:
			return fmt.Errorf("artifacts: %s is %d bytes; give 1 to %d", platform, a.Size, MaxArtifactBytes)
		case !validDigest(a.SHA256):
			return fmt.Errorf("artifacts: the sha256 of %s is not 64 lower-case hex digits", platform)
		}
		if err := a.Chunks().validate(); err != nil {
			return fmt.Errorf("artifacts: %s: %w", platform, err)
		}
		seen[platform] = true
	}
	return nil
}

// ValidVersion tells whether s can name a release: 1 to 64 bytes of
// A-Z a-z 0-9 . _ + -, a letter or digit first, so that no version is a
// directory such as .. or an option such as -f.
func ValidVersion(s string) bool {
	return s != "" && len(s) <= maxVersionBytes && onlyOf(s, lower+upper+digits+"._+-") && onlyOf(s[:1], lower+upper+digits)
}

const versionRule = "give 1 to 64 of A-Z a-z 0-9 . _ + -, a letter or digit first"

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
)

func onlyOf(s, charset string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return !strings.ContainsRune(charset, c) }) < 0
}

func validDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && s == strings.ToLower(s)
}
