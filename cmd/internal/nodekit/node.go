package nodekit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"moult/mesh"
	"moult/updater"
)

// NewLogger logs to stderr: text for people, JSON when asked for, and what the
// journal expects where stderr is the journal.
func NewLogger(o NodeOptions, w io.Writer) *slog.Logger {
	o.setLevel()
	opts := &slog.HandlerOptions{Level: o.level}
	if o.logJSON || o.Json {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	if o.logJournal || StderrIsJournal(w) {
		return slog.New(NewJournalHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// setLevel has the log tell as much as logDebug says.
func (o *NodeOptions) setLevel() {
	if o.logDebug {
		o.level.Set(slog.LevelDebug)
	} else {
		o.level.Set(slog.LevelInfo)
	}
}

// BuildInfo is what this program was built as.
type BuildInfo struct {
	Version string
	Number  uint64 // of the release; 0: not known
}

// Self is what a process knows of itself.
type Self struct {
	Build      BuildInfo
	Executable string
	Digest     string // sha256 of the executable, 64 hex digits
	Boot       uint64
}

// DescribeSelf counts a start and hashes the program that runs, unless its supervisor
// just has.
func DescribeSelf(dataDir string, b BuildInfo, link *updater.SupervisorLink) (Self, error) {
	exe, err := os.Executable()
	if err != nil {
		return Self{}, fmt.Errorf("find this binary: %w", err)
	}
	digest := ""
	if link != nil {
		digest = link.Digest()
	}
	if digest == "" {
		if digest, err = FileDigest(exe); err != nil {
			return Self{}, fmt.Errorf("hash this binary: %w", err)
		}
	}
	boot, err := nextBoot(dataDir)
	if err != nil {
		return Self{}, fmt.Errorf("count this start: %w", err)
	}
	return Self{Build: b, Executable: exe, Digest: digest, Boot: boot}, nil
}

// FileDigest is a file's sha256, 64 hex digits.
func FileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// nextBoot returns the number of this start. It rises even when the file was
// lost, as long as the clock did not fall behind it.
func nextBoot(dataDir string) (uint64, error) {
	path := filepath.Join(dataDir, "boot")
	var last uint64
	if text, err := os.ReadFile(path); err == nil {
		last, _ = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	}
	boot := max(last+1, uint64(time.Now().Unix()))
	return boot, WriteFileAtomic(path, fmt.Appendf(nil, "%d\n", boot), 0o600)
}

// LeaveAndClose tells the others that this host goes, then closes the mesh.
func LeaveAndClose(node *mesh.Node, logger *slog.Logger) {
	if err := node.Leave(leaveTimeout); err != nil {
		logger.Debug("leave the mesh", "error", err)
	}
	if err := node.Close(); err != nil {
		logger.Warn("close the mesh", "error", err)
	}
}
