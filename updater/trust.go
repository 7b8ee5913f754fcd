package updater

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"moult/updater/install"
)

// offer is what a verified manifest offers this host's platform.
type offer struct {
	Version  string
	Number   uint64
	Floor    uint64
	Rollback bool
	Expires  time.Time // zero: never
	Digest   string
	Size     int64
}

// trust is DATA/trust.json: what keeps this host from going back. It only rises;
// a signed rollback passes Highest without lowering it, so that it opens the way
// to one older release, not to all in between.
type trust struct {
	Highest uint64 `json:"highest_number"` // of the releases that were committed here
	Floor   uint64 `json:"floor"`          // no release below it is ever installed
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
func raiseTrust(dataDir string, number, floor uint64) error {
	t, err := loadTrust(dataDir)
	if err != nil {
		return err
	}
	raised := trust{Highest: max(t.Highest, number), Floor: max(t.Floor, floor)}
	if raised == t {
		return nil
	}
	return install.SaveSealed(trustPath(dataDir), raised)
}

// admit tells whether a signed offer may be installed on top of what was.
func (t trust) admit(o offer, now time.Time) error {
	switch {
	case o.Number < t.Floor:
		return fmt.Errorf("release %s (number %d) is below the floor %d that a later release set; choose a newer release", o.Version, o.Number, t.Floor)
	case o.Number < t.Highest && !o.Rollback:
		return fmt.Errorf("release %s (number %d) is older than number %d, which was installed here; to go back to its code, build that under a new version and publish it with a higher number, or sign it as a rollback", o.Version, o.Number, t.Highest)
	case !o.Expires.IsZero() && now.After(o.Expires):
		return fmt.Errorf("the manifest of release %s expired at %s; sign and publish it anew", o.Version, o.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}
