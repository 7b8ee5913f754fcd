package release

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"moult/updater/internal/durable"
)

// The files of a release directory.
const (
	ManifestFile  = "manifest.json"
	SignatureFile = "manifest.json.minisig"
)

// FileName is the name of an artifact in a release directory.
func FileName(version string, p Platform) string {
	name := fmt.Sprintf("%s-%s-%s-%s", Product, version, p.OS, p.Arch)
	if p.OS == "windows" {
		name += ".exe"
	}
	return name
}

// BuildOptions says what Build makes a release of.
type BuildOptions struct {
	Dir       string // made by Build
	Version   string
	Number    uint64
	Floor     uint64 // 0: none
	Rollback  bool
	MinFrom   uint64 // 0: any
	Notes     string
	Expires   *time.Time // nil: never
	Created   time.Time
	SecretKey string              // minisign, unlocked
	Files     map[Platform]string // the binaries
	Whole     bool                // sign no chunk lists: hosts from before there were any refuse them
	// Progress is told how far a binary has been copied. May be nil.
	Progress func(p Platform, done, total int64)
}

// Build makes a release directory. The signature is written last: a directory
// that has one is complete. When Build fails, it takes away what it wrote. It
// returns ErrWrongPlatform, wrapped, for a binary of another platform than it is
// given for, and refuses a directory that holds a signed release.
func Build(o BuildOptions) (Manifest, error) {
	m := Manifest{
		Product: Product, Version: o.Version, Number: o.Number, Floor: o.Floor, Rollback: o.Rollback, MinFrom: o.MinFrom,
		Notes: o.Notes, Created: o.Created.UTC().Truncate(time.Second), Expires: o.Expires,
	}
	platforms, total, err := o.check()
	if err != nil {
		return Manifest{}, err
	}
	_, err = os.Stat(o.Dir)
	b := builder{BuildOptions: o, fresh: errors.Is(err, os.ErrNotExist)}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return Manifest{}, fmt.Errorf("make --out: %w", err)
	}
	for _, p := range platforms {
		a, err := b.artifact(p, total[p])
		if err != nil {
			return Manifest{}, b.undo(fmt.Errorf("artifact %s: %w", p, err))
		}
		m.Artifacts = append(m.Artifacts, a)
	}
	if err := b.sign(m); err != nil {
		return Manifest{}, b.undo(err)
	}
	return m, nil
}

// check refuses what cannot become a release before anything is written, and
// returns the platforms in order and the size of each one's binary.
func (o BuildOptions) check() ([]Platform, map[Platform]int64, error) {
	if o.Dir == "" {
		return nil, nil, errors.New("--out is empty; give the directory to make")
	}
	if !ValidVersion(o.Version) {
		return nil, nil, fmt.Errorf("--version %.100q: %s", o.Version, versionRule)
	}
	if _, err := parseSecretKey(o.SecretKey); err != nil {
		return nil, nil, err
	}
	if o.Expires != nil && !o.Expires.After(o.Created) {
		return nil, nil, fmt.Errorf("expires: %s is not after the release's making, so no host could install it", o.Expires.UTC().Format(time.RFC3339))
	}
	if len(o.Files) == 0 {
		return nil, nil, errors.New("the release has no binary; give at least one, as linux/amd64=PATH")
	}
	if _, err := os.Stat(filepath.Join(o.Dir, SignatureFile)); err == nil {
		return nil, nil, fmt.Errorf("%s holds a release already; give another --out", o.Dir)
	}
	var platforms []Platform
	total := map[Platform]int64{}
	for p, path := range o.Files {
		if !p.valid() {
			return nil, nil, fmt.Errorf("%q is not a platform; give it as linux/amd64", p)
		}
		st, err := os.Stat(path)
		if err != nil {
			return nil, nil, fmt.Errorf("the binary for %s: %w; build it first", p, err)
		}
		if !st.Mode().IsRegular() {
			return nil, nil, fmt.Errorf("the binary for %s: %s is not a file", p, path)
		}
		if st.Size() == 0 || st.Size() > MaxArtifactBytes {
			return nil, nil, fmt.Errorf("the binary for %s: %s is %d bytes; it must have 1 to %d", p, path, st.Size(), MaxArtifactBytes)
		}
		if err := p.Check(path); err != nil {
			return nil, nil, err
		}
		// It would be overwritten, and taken away when Build fails.
		if own, err := os.Stat(filepath.Join(o.Dir, FileName(o.Version, p))); err == nil && os.SameFile(own, st) {
			return nil, nil, fmt.Errorf("the binary for %s: %s is where the release's copy goes; give another --out", p, path)
		}
		platforms, total[p] = append(platforms, p), st.Size()
	}
	slices.SortFunc(platforms, func(a, b Platform) int {
		return cmp.Or(cmp.Compare(a.OS, b.OS), cmp.Compare(a.Arch, b.Arch))
	})
	return platforms, total, nil
}

// builder writes a release directory and remembers what to take away again.
type builder struct {
	BuildOptions
	fresh   bool // it makes the directory
	written []string
}

func (b *builder) artifact(p Platform, total int64) (Artifact, error) {
	src, err := os.Open(b.Files[p])
	if err != nil {
		return Artifact{}, err
	}
	defer src.Close()
	h, chunks := sha256.New(), NewChunkLister(ChunkSizeFor(total))
	var n int64
	err = b.write(FileName(b.Version, p), 0o755, func(w io.Writer) (err error) {
		n, err = io.Copy(io.MultiWriter(w, h, chunks), &meter{io.LimitReader(src, total+1), 0, func(done int64) {
			if b.Progress != nil {
				b.Progress(p, min(done, total), total)
			}
		}})
		return err
	})
	if err != nil {
		return Artifact{}, err
	}
	if n != total {
		return Artifact{}, fmt.Errorf("%s changed while it was copied; wait until its build has ended", b.Files[p])
	}
	a := Artifact{OS: p.OS, Arch: p.Arch, Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}
	if !b.Whole {
		c := chunks.Chunks()
		a.ChunkSize, a.ChunkList = c.Size, c.List
	}
	return a, nil
}

func (b *builder) sign(m Manifest) error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	signature, err := Sign(b.SecretKey, text)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{ManifestFile, text}, {SignatureFile, signature}} {
		err := b.write(f.name, 0o644, func(w io.Writer) error {
			_, err := w.Write(f.content)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) write(name string, mode os.FileMode, write func(io.Writer) error) error {
	path := filepath.Join(b.Dir, name)
	b.written = append(b.written, path)
	return durable.Replace(path, mode, write)
}

// undo takes away what was written, newest first.
func (b *builder) undo(err error) error {
	for _, path := range slices.Backward(b.written) {
		os.Remove(path)
	}
	if b.fresh {
		os.Remove(b.Dir) // which fails when others have put something there
	}
	return err
}

// meter tells how many bytes were read so far.
type meter struct {
	r    io.Reader
	done int64
	tell func(done int64)
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.done += int64(n)
	if n > 0 {
		m.tell(m.done)
	}
	return n, err
}

// Dir is a release directory that was read.
type Dir struct {
	Path      string
	Manifest  []byte
	Signature []byte
	Parsed    Manifest
}

// ReadDir reads a release directory for publishing. Every artifact must be
// there, have the signed length and digest and be of its platform, so that what
// the servers would refuse is not sent to them first. Whose the signature is, it
// leaves to them: they know the pinned keys. Returns os.ErrNotExist, wrapped, for
// a missing file, ErrMismatch and ErrWrongPlatform.
func ReadDir(path string) (Dir, error) {
	d := Dir{Path: path}
	var err error
	if d.Manifest, err = readBounded(filepath.Join(path, ManifestFile), MaxManifestBytes); err != nil {
		return Dir{}, fmt.Errorf("%s is not a release: %w; make one with: moult release create", path, err)
	}
	if d.Signature, err = readBounded(filepath.Join(path, SignatureFile), MaxSignatureBytes); err != nil {
		return Dir{}, fmt.Errorf("the release is not signed: %w; sign it with: minisign -Sm %s", err, filepath.Join(path, ManifestFile))
	}
	if d.Parsed, err = Parse(d.Manifest); err != nil {
		return Dir{}, fmt.Errorf("%s: %w", filepath.Join(path, ManifestFile), err)
	}
	for _, a := range d.Parsed.Artifacts {
		if err := d.check(a); err != nil {
			return Dir{}, err
		}
	}
	return d, nil
}

// ArtifactPath is where an artifact of the release lies.
func (d Dir) ArtifactPath(a Artifact) string {
	return filepath.Join(d.Path, FileName(d.Parsed.Version, Platform{a.OS, a.Arch}))
}

func (d Dir) check(a Artifact) error {
	path := d.ArtifactPath(a)
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("the release is incomplete: %w; create it again", err)
	}
	if !st.Mode().IsRegular() {
		return mismatch("%s is not a file", path)
	}
	if st.Size() != a.Size {
		return mismatch("%s is %d bytes, the manifest says %d", path, st.Size(), a.Size)
	}
	digest, chunks, err := digestOf(path, a)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if digest != a.SHA256 {
		return mismatch("%s has the sha256 %s, the manifest says %s", path, digest, a.SHA256)
	}
	if chunks != a.Chunks() {
		return mismatch("the chunk list of %s has the sha256 %s, the manifest says %s", path, chunks.List, a.ChunkList)
	}
	return Platform{a.OS, a.Arch}.Check(path)
}

// mismatch ends with the code that a server refuses such a release with, so that
// it reads alike wherever it is found.
func mismatch(format string, args ...any) error {
	return fmt.Errorf("%w: %s; create the release again (digest_mismatch)", ErrMismatch, fmt.Sprintf(format, args...))
}

// digestOf hashes at most one byte more than a file should have, and its chunks
// as the manifest cuts them.
func digestOf(path string, a Artifact) (string, Chunks, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", Chunks{}, err
	}
	defer f.Close()
	h := sha256.New()
	content := io.TeeReader(io.LimitReader(f, a.Size+1), h)
	var chunks Chunks
	if a.Chunks().Signed() {
		chunks, err = listChunks(content, a.ChunkSize)
	} else {
		_, err = io.Copy(io.Discard, content)
	}
	return hex.EncodeToString(h.Sum(nil)), chunks, err
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%s has more than the %d bytes allowed", path, limit)
	}
	return content, err
}
