package updater

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"moult/updater/install"
	"moult/updater/release"
)

// offer is what a verified manifest offers this host's platform.
type offer struct {
	Version  string
	Number   uint64
	Floor    uint64
	MinFrom  uint64 // 0: it may replace any
	Rollback bool
	Expires  *time.Time // nil: never
	Digest   string
	Size     int64
	Chunks   release.Chunks
}

// trust is DATA/trust.json: what keeps this host from going back, and whose
// releases it believes. The numbers only rise; a signed rollback passes Highest
// without lowering it, so that it opens the way to one older release, not to all
// in between.
type trust struct {
	Highest   uint64      `json:"highest_number"` // of the releases that were committed here
	Floor     uint64      `json:"floor"`          // no release below it is ever installed
	Installed *installed  `json:"installed,omitempty"`
	Keys      *pinnedKeys `json:"release_keys,omitempty"`
}

// installed is the release that was committed last.
type installed struct {
	Version string     `json:"version"`
	Number  uint64     `json:"number"`
	Digest  string     `json:"digest"` // of the binary: another one may have been put in its place by hand
	Expires *time.Time `json:"expires,omitempty"`
	// Previous is the digest of what it replaced, which this host can go back to.
	Previous string `json:"previous,omitempty"`
}

// pinnedKeys are the release keys that this host believes. A host that was moved
// to another cluster starts from those that it was given there.
type pinnedKeys struct {
	Cluster string `json:"cluster"`
	release.KeySet
	Followed []followedStatement `json:"followed,omitempty"` // the newest last
	Fork     *KeyFork            `json:"fork,omitempty"`     // the last that was seen
}

func trustPath(dataDir string) string { return filepath.Join(dataDir, "trust.json") }

// loadTrust fails closed: with a file it cannot read, no release is installed.
func loadTrust(dataDir string) (trust, error) {
	var t trust
	err := install.LoadSealed(trustPath(dataDir), &t)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return trust{}, fmt.Errorf("read the highest installed release: %w; restore %s, or remove it to trust any signed release once", err, trustPath(dataDir))
	}
	return t, nil
}

// raiseTrust remembers a committed release.
func raiseTrust(dataDir string, r installed, floor uint64) error {
	t, err := loadTrust(dataDir)
	if err != nil {
		return err
	}
	raised := t
	raised.Highest, raised.Floor = max(t.Highest, r.Number), max(t.Floor, floor)
	if r.Digest != "" && (t.Installed == nil || t.Installed.Digest != r.Digest || t.Installed.Number != r.Number) {
		if t.Installed != nil && t.Installed.Digest == r.Digest && r.Previous == "" {
			r.Previous = t.Installed.Previous // the same binary under another number
		}
		raised.Installed = &r
	}
	if raised == t {
		return nil
	}
	return install.SaveSealed(trustPath(dataDir), raised)
}

// goBack are the digests of the binaries that this host can go back to: what it
// replaced, and, while another one is on trial, what it runs otherwise.
func (t trust) goBack() []string {
	if t.Installed == nil {
		return nil
	}
	return []string{t.Installed.Digest, t.Installed.Previous}
}

// running is the number of the release whose binary has the digest, if that is
// the one that was committed last.
func (t trust) running(digest string) (number uint64, known bool) {
	if t.Installed == nil || t.Installed.Digest != digest {
		return 0, false
	}
	return t.Installed.Number, true
}

// admit tells whether a signed offer may be installed on top of what was. running
// is the number of the release that it would replace; 0: not known.
func (t trust) admit(o offer, running uint64, now time.Time) error {
	switch {
	case o.Number < t.Floor:
		return fmt.Errorf("release %s (number %d) is below the floor %d that a later release set; choose a newer release", o.Version, o.Number, t.Floor)
	case o.Number < t.Highest && !o.Rollback:
		return fmt.Errorf("release %s (number %d) is older than number %d, which was installed here; to go back to its code, build that under a new version and publish it with a higher number, or sign it as a rollback", o.Version, o.Number, t.Highest)
	case running < o.MinFrom && running == 0:
		return fmt.Errorf("release %s replaces releases from number %d on, and of which number this host's binary is, is not known here; update it to one of those first", o.Version, o.MinFrom)
	case running < o.MinFrom:
		return fmt.Errorf("release %s replaces releases from number %d on, this host runs number %d; update it to one in between first", o.Version, o.MinFrom, running)
	case o.Expires != nil && now.After(*o.Expires):
		return fmt.Errorf("the manifest of release %s expired at %s; sign and publish it anew", o.Version, o.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}
