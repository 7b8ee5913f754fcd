package install

import (
	"context"
	"errors"
	"os"
	"time"
)

const (
	// proofLife is how long a Proof is good: a mount or a library may change, too.
	proofLife = 10 * time.Minute
	// settledAfter is from when on the time of a directory's last change tells all
	// changes apart: a clock that stamps them ticks.
	settledAfter = 2 * time.Second
)

// errNoProof: files cannot be told apart here.
var errNoProof = errors.New("this system does not tell whether a file was changed")

// Proof says that a staged file has passed Preflight ahead of its turn, and is as it
// was then. Nothing is executed on the strength of it: it saves Preflight, which then
// executes nothing, from hashing the file. Whoever does execute it hashes it first.
// It is kept in memory only, and for ten minutes at most.
type Proof struct {
	staged, digest, version, os, arch string

	file  identity
	at    time.Time
	lists ownership
}

// Prove does what Preflight does, and returns what is left to be done at the turn the
// less. Errors as Preflight's.
func Prove(ctx context.Context, r PreflightRequest) (*Proof, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	if !identifies {
		return nil, errNoProof
	}
	r.Proof = nil
	p := &Proof{staged: r.Staged, digest: r.Digest, version: r.Version, os: r.OS, arch: r.Arch, at: time.Now()}
	if _, err := r.check(ctx, &p.lists, func(f *os.File) (err error) {
		p.file, err = identify(f)
		return err
	}); err != nil {
		return nil, err
	}
	return p, nil
}

// Stands tells whether the proof is good for a request. A nil Proof is not.
func (p *Proof) Stands(r PreflightRequest) bool {
	if r.validate() != nil {
		return false
	}
	f := p.open(r)
	if f != nil {
		f.Close()
	}
	return f != nil
}

// open returns the staged file if the proof is of it and it is as it was, else nil.
func (p *Proof) open(r PreflightRequest) *os.File {
	if p == nil || p.staged != r.Staged || p.digest != r.Digest || p.version != r.Version || p.os != r.OS || p.arch != r.Arch || time.Since(p.at) > proofLife {
		return nil
	}
	f, err := openStaged(p.staged)
	if err != nil {
		return nil
	}
	if now, err := identify(f); err != nil || now != p.file {
		f.Close()
		return nil
	}
	return f
}

// ownership remembers which Debian package lists a path, as long as no list changes.
type ownership struct {
	info, path string
	lists      identity // of the directory that they are in
	owner      string
}

// dpkgOwner is dpkgOwner, of memory where that is good. dpkg replaces a list by a
// rename, which changes the directory.
func (o *ownership) dpkgOwner(info, path string, now time.Time) string {
	dir, err := os.Open(info)
	if err != nil {
		return ""
	}
	defer dir.Close()
	lists, err := identify(dir)
	if err == nil && *o == (ownership{info, path, lists, o.owner}) {
		return o.owner
	}
	owner := dpkgOwner(info, path)
	if err == nil && now.Sub(lists.changed()) > settledAfter {
		*o = ownership{info, path, lists, owner}
	}
	return owner
}
