// Package backup is the file that a cluster is restored from.
//
// A backup holds the replicated state as of one index, with all that a new
// cluster needs to go on: the CA and its key, the gossip keys, the release keys,
// users and tokens. It may hold the bytes of the releases. It holds no host's own
// key, and nothing of Raft's log.
//
// A server writes one (Write) for whoever asks with an admin's token, encrypted to
// a key that the asking side made for the purpose, so that what goes over the wire
// is of no use to others. The asking side reads it (Read), which verifies all of it,
// and encrypts it to the key or passphrase that it is to be kept with. A restore
// reads it twice: once to verify it, once to use it.
//
// # Format
//
// The file is an age file (age-encryption.org/v1); `age -d FILE | tar tv` lists
// what is in it. age authenticates every chunk and the end, so a byte that was
// altered, added or cut off is noticed. Inside is a tar archive, in this order:
//
//	backup.json          a Header
//	state                a snapshot of the state, as package fleet writes it, checksummed
//	artifacts/SHA256     the bytes of a release, one for each that the Header names
//
// A version of the format is read by all later versions of moult; a reader that
// meets a higher one says so.
package backup

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"moult/consensus/fleet"
)

const (
	format         = "moult-backup"
	version        = 1
	headerName     = "backup.json"
	stateName      = "state"
	artifactPrefix = "artifacts/"

	maxHeader    = 4 << 20 // bytes
	maxArtifacts = fleet.MaxReleases * fleet.MaxArtifacts
)

// ErrDamaged is wrapped by what Read returns for bytes that are not a whole backup.
var ErrDamaged = errors.New("the backup is damaged")

// ErrNewer: a later version of moult wrote the backup.
var ErrNewer = errors.New("the backup is of a newer moult; restore it with that")

// Header says what a backup is of.
type Header struct {
	Format    string     `json:"format"`
	Version   int        `json:"version"`
	ClusterID string     `json:"cluster_id"`
	Epoch     uint64     `json:"epoch"`
	Index     uint64     `json:"index"` // of the last entry in the state
	TakenAt   time.Time  `json:"taken_at"`
	Server    string     `json:"server"`    // that wrote it, by name
	Moult     string     `json:"moult"`     // its version
	Artifacts []Artifact `json:"artifacts"` // whose bytes are here
}

// Artifact is one binary of a release.
type Artifact struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"` // bytes
}

// Wanted lists the artifacts of the releases that can be chosen, each once.
func Wanted(v fleet.View) (list []Artifact) {
	seen := map[string]bool{}
	for _, r := range v.Releases() {
		for _, a := range r.Artifacts {
			if !r.Withdrawn && !seen[a.SHA256] {
				seen[a.SHA256] = true
				list = append(list, Artifact{a.SHA256, a.Size})
			}
		}
	}
	return list
}

// Write writes a backup of a view, unencrypted, with the artifacts that the header
// names; open opens one for reading. It fills in what the view knows.
func Write(w io.Writer, h Header, v fleet.View, open func(digest string) (io.ReadCloser, error)) error {
	cluster, ok := v.Cluster()
	if !ok {
		return errors.New("there is no cluster yet to make a backup of")
	}
	h.Format, h.Version = format, version
	h.ClusterID, h.Epoch, h.Index = cluster.ID, cluster.Epoch, v.Index()
	text, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	if err := entry(out, headerName, int64(len(text)), h.TakenAt, func() error { _, err := out.Write(text); return err }); err != nil {
		return err
	}
	// tar wants the length first. A view does not change, so it is written twice
	// rather than kept.
	var size counter
	if err := v.Snapshot(&size); err != nil {
		return err
	}
	if err := entry(out, stateName, int64(size), h.TakenAt, func() error { return v.Snapshot(out) }); err != nil {
		return err
	}
	for _, a := range h.Artifacts {
		err := entry(out, artifactPrefix+a.SHA256, a.Size, h.TakenAt, func() error {
			content, err := open(a.SHA256)
			if err != nil {
				return err
			}
			defer content.Close()
			_, err = io.Copy(out, content)
			return err
		})
		if err != nil {
			return err
		}
	}
	return out.Close()
}

func entry(out *tar.Writer, name string, size int64, at time.Time, write func() error) error {
	err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: at, Typeflag: tar.TypeReg, Format: tar.FormatPAX})
	if err == nil {
		err = write()
	}
	if err == nil {
		err = out.Flush() // errs when write wrote too little
	}
	if err != nil {
		return fmt.Errorf("write %s into the backup: %w", name, err)
	}
	return nil
}

type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// Contents is what Read calls with what it finds. Each function may be nil. What
// they got counts only when Read returned nil.
type Contents struct {
	Header   func(Header) error
	State    func(snapshot io.Reader) error
	Artifact func(a Artifact, content io.Reader) error
}

// Read reads a whole backup and verifies it: each part is there, in its place and
// with its digest, and nothing comes after it. An error that is not one of the
// functions' wraps ErrDamaged, ErrNewer or what the reader returned.
func Read(r io.Reader, c Contents) (Header, error) {
	in := tar.NewReader(r)
	h, err := readHeader(in)
	if err != nil {
		return h, err
	}
	if c.Header != nil {
		if err := c.Header(h); err != nil {
			return h, err
		}
	}
	if _, err := next(in, stateName); err != nil {
		return h, err
	}
	if err := readState(in, h, c.State); err != nil {
		return h, err
	}
	for _, a := range h.Artifacts {
		if err := readArtifact(in, a, c.Artifact); err != nil {
			return h, err
		}
	}
	return h, readEnd(in, r)
}

// readEnd reads to the end, which is authenticated too.
func readEnd(in *tar.Reader, r io.Reader) error {
	extra, err := in.Next()
	if err == nil {
		return damaged("its end", fmt.Errorf("%q is there", extra.Name))
	}
	if !errors.Is(err, io.EOF) {
		return damaged("its end", err)
	}
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return damaged("its end", err)
	}
	if n > 0 {
		return damaged("its end", fmt.Errorf("%d bytes come after it", n))
	}
	return nil
}

func damaged(where string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %s: %w; use another one", ErrDamaged, where, err)
}

// next goes on to a part, which must be the next one.
func next(in *tar.Reader, name string) (int64, error) {
	found, err := in.Next()
	if err != nil {
		return 0, damaged(name, err)
	}
	if found.Name != name || found.Typeflag != tar.TypeReg {
		return 0, damaged(name, fmt.Errorf("%q is in its place", found.Name))
	}
	return found.Size, nil
}

func readHeader(in *tar.Reader) (h Header, err error) {
	size, err := next(in, headerName)
	if err != nil {
		return h, err
	}
	if size > maxHeader {
		return h, damaged(headerName, fmt.Errorf("it is %d bytes, at most %d are read", size, maxHeader))
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return h, damaged(headerName, err)
	}
	if err := json.Unmarshal(text, &h); err != nil {
		return h, damaged(headerName, err)
	}
	switch {
	case h.Format != format:
		return h, damaged(headerName, errors.New("this is not a backup of moult"))
	case h.Version > version:
		return h, fmt.Errorf("%w (its format is %d, this one reads up to %d)", ErrNewer, h.Version, version)
	case len(h.Artifacts) > maxArtifacts:
		return h, damaged(headerName, fmt.Errorf("it names %d artifacts", len(h.Artifacts)))
	}
	return h, nil
}

// readState checks the state by restoring it: it is what a server will do.
func readState(in io.Reader, h Header, use func(io.Reader) error) error {
	restored := fleet.New()
	if use == nil {
		use = func(io.Reader) error { return nil }
	}
	pipe, w := io.Pipe()
	used := make(chan error, 1)
	go func() {
		err := use(pipe)
		_, _ = io.Copy(io.Discard, pipe) // what it left
		used <- err
	}()
	err := restored.Restore(io.TeeReader(in, w))
	w.CloseWithError(err)
	if useErr := <-used; err == nil && useErr != nil {
		return useErr
	}
	if err != nil {
		return damaged(stateName, err)
	}
	cluster, _ := restored.View().Cluster()
	if cluster.ID != h.ClusterID || cluster.Epoch != h.Epoch || restored.View().Index() != h.Index {
		return damaged(stateName, fmt.Errorf("it is of cluster %s at %d, the header says %s at %d", cluster.ID, restored.View().Index(), h.ClusterID, h.Index))
	}
	return nil
}

func readArtifact(in *tar.Reader, a Artifact, use func(Artifact, io.Reader) error) error {
	name := artifactPrefix + a.SHA256
	size, err := next(in, name)
	if err != nil {
		return err
	}
	digest := sha256.New()
	content := io.TeeReader(in, digest)
	if use != nil {
		if err := use(a, content); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, content); err != nil {
		return damaged(name, err)
	}
	if got := hex.EncodeToString(digest.Sum(nil)); got != a.SHA256 || size != a.Size {
		return damaged(name, fmt.Errorf("it has %d bytes with the sha256 %s", size, got))
	}
	return nil
}
