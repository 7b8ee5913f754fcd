package updater

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"moult/updater/install"
)

// envHandedOver tells the active binary that the packaged one became it: "PID:PATH",
// the process that did, and where the packaged one is. In any other process it
// means nothing, as exec keeps the process id.
const envHandedOver = "MOULT_HANDED_OVER"

const (
	// maxHandOvers is how often in a row an active binary may end before it was up
	// for provenAfter. Then the packaged one runs.
	maxHandOvers = 5
	provenAfter  = 30 * time.Second
)

// errPackaged: there is an active binary, but the packaged one goes before it.
var errPackaged = errors.New("the packaged binary goes before the active one")

// PackagedConfig says who the packaged binary is, for BeginActive.
type PackagedConfig struct {
	Installed string // its path, from InstalledPath
	DataDir   string // locked by this process
	Version   string // of this program
	Number    uint64 // of this program's release, where the build knows it; else 0
	Logger    *slog.Logger
}

// BeginActive is for the start of a program that supervises itself or an agent,
// once it holds its data directory and is not Supervised. Where a release was
// committed to the data directory, because the installed binary is not moult's to
// replace, this process becomes that binary: same process id, same arguments. It
// returns true in that one, to be given to SupervisorConfig.Active, and false where
// the installed binary is to run. A damaged active binary is one of the latter
// cases; it is told in the log.
func BeginActive(c PackagedConfig) (active bool) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	log := c.Logger.With("component", "active")
	if _, ok := handedOver(); ok {
		_ = os.Unsetenv(envHandedOver)
		takeName()
		time.AfterFunc(provenAfter, func() {
			if err := install.ForgetStarts(c.DataDir); err != nil {
				log.Warn("note that this binary stays up", "error", err)
			}
		})
		return true
	}
	_ = os.Unsetenv(envHandedOver) // another process's
	if _, adopting := os.LookupEnv(envHandover); adopting {
		return false // just committed in place, with a child to take over
	}
	f, a, err := c.choose()
	switch {
	case errors.Is(err, install.ErrNoActive):
		return false
	case errors.Is(err, errPackaged):
		log.Warn("running the packaged binary", "packaged", c.Version, "active", a.Version, "because", err)
		if err := c.remember(); err != nil {
			log.Error("remember the packaged release", "error", err)
		}
		return false
	case err != nil:
		log.Error("running the packaged binary: the active one in the data directory cannot be used; update this host again to replace it",
			"packaged", c.Version, "active", a.Version, "error", err)
		return false
	}
	defer f.Close()
	log.Info("handing over to the active binary", "packaged", c.Version, "active", a.Version, "path", f.Name())
	err = executeActive(f, c.Installed, os.Environ())
	log.Error("running the packaged binary: the active one cannot be executed", "packaged", c.Version, "active", a.Version, "error", err)
	return false
}

// choose returns the active binary, verified, if that is what has to run.
func (c PackagedConfig) choose() (*os.File, install.Active, error) {
	a, err := install.LoadActive(c.DataDir)
	if err != nil {
		return nil, a, err
	}
	if err := c.goesBefore(a); err != nil {
		return nil, a, err
	}
	f, a, err := openActive(c.DataDir)
	if err != nil {
		return nil, a, err
	}
	before, err := install.CountStart(c.DataDir, a.Digest)
	if before >= maxHandOvers {
		f.Close()
		return nil, a, fmt.Errorf("it was started %d times and never stayed up for %v", before, provenAfter)
	}
	if err != nil {
		c.Logger.Warn("count the starts of the active binary", "error", err) // on a full disk it runs all the same
	}
	return f, a, nil
}

// openActive opens the active binary, verified. A floor that cannot be read stops
// no release that runs.
func openActive(dataDir string) (*os.File, install.Active, error) {
	t, err := loadTrust(dataDir)
	if err != nil {
		t.Floor = 0
	}
	return install.OpenActive(dataDir, t.Floor)
}

// ActiveBinary tells which binary is active in a data directory, and verifies it as
// its start would. It returns install.ErrNoActive where the installed binary is the
// one that runs, and install.ErrActive when there is one that cannot be used.
func ActiveBinary(dataDir string) (install.Active, error) {
	f, a, err := openActive(dataDir)
	if err == nil {
		f.Close()
	}
	return a, err
}

// goesBefore tells why the packaged binary goes before the active one: it was
// installed after that one was committed, and is newer. While it is the one that the
// active binary was committed on top of, nobody has said anything else since.
func (c PackagedConfig) goesBefore(a install.Active) error {
	digest, err := install.Digest(c.Installed)
	if err != nil || digest == a.PackagedDigest {
		return nil
	}
	if m, err := install.LoadMarker(c.DataDir); err == nil && m.Place != install.InData && m.Digest == digest {
		return fmt.Errorf("%w: it was just committed in its place", errPackaged)
	}
	if digest == a.Digest {
		return fmt.Errorf("%w: it is the same release", errPackaged)
	}
	if NewerProgram(c.Version, c.Number, a.Version, a.Number) {
		return fmt.Errorf("%w: version %s was installed after version %s was committed", errPackaged, c.Version, a.Version)
	}
	return nil
}

// NewerProgram tells whether a program is newer than a release: by the release
// numbers, where both are known, else by the order of their versions, where they
// have one (1.2.3).
func NewerProgram(version string, number uint64, than string, thanNumber uint64) bool {
	if number != 0 && thanNumber != 0 {
		return number > thanNumber
	}
	v, t := "v"+strings.TrimPrefix(version, "v"), "v"+strings.TrimPrefix(than, "v")
	return semver.IsValid(v) && semver.IsValid(t) && semver.Compare(v, t) > 0
}

// remember keeps older releases from being installed over a newer package.
func (c PackagedConfig) remember() error {
	digest, err := install.Digest(c.Installed)
	if err != nil || c.Number == 0 {
		return err
	}
	return raiseTrust(c.DataDir, installed{Version: c.Version, Number: c.Number, Digest: digest}, 0)
}

// handedOver tells whether the packaged binary became this process, and where it is.
func handedOver() (packaged string, ok bool) {
	pid, packaged, found := strings.Cut(os.Getenv(envHandedOver), ":")
	return packaged, found && packaged != "" && pid == strconv.Itoa(os.Getpid())
}

// executeActive replaces this process by the verified file. It returns only when
// that fails.
func executeActive(f *os.File, packaged string, env []string) error {
	return executeFile(f, append(env, envHandedOver+"="+strconv.Itoa(os.Getpid())+":"+packaged))
}

// startActive starts the active binary as the child. When it is damaged this
// process becomes the packaged one, which says so.
func (s *supervisor) startActive() (*child, error) {
	f, a, err := openActive(s.DataDir)
	if err != nil {
		s.log.Error("the active binary cannot be used; becoming the packaged one", "active", a.Version, "error", err)
		s.side.flush(flushOutput)
		return nil, errors.Join(err, ReplaceSelf(s.Installed))
	}
	defer f.Close()
	return s.startVerified(f)
}

// activate commits a trial to the data directory.
func (s *supervisor) activate(m install.Marker) error {
	if runtime.GOOS == "windows" || m.Release == nil {
		return errors.New("the marker has no signed release, which a binary in the data directory needs; start the update again")
	}
	packaged, err := os.Lstat(s.Installed)
	if err != nil {
		return fmt.Errorf("find the packaged binary: %w", err)
	}
	if !packaged.Mode().IsRegular() && packaged.Mode()&os.ModeSymlink == 0 {
		return fmt.Errorf("the packaged binary %s is no file", s.Installed)
	}
	err = install.Activate(install.ActivateRequest{
		Staged: m.StagedPath, DataDir: s.DataDir, Step: s.SwapStep,
		Active: install.Active{
			Version: m.Version, Number: m.Number, Digest: m.Digest, Release: *m.Release,
			Packaged: s.Installed, At: time.Now(),
		},
	})
	if err != nil {
		return err
	}
	return install.ForgetStarts(s.DataDir)
}
