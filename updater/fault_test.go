//go:build linux

package updater

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"moult/updater/artifact"
	"moult/updater/install"
	"moult/updater/internal/disktest"
	"moult/updater/order"
	"moult/updater/release"
)

// What a host does when the disk, a peer or the release is not as it should be:
// each job ends with a message that names the next step, the installed binary
// is untouched and nothing is half written.

// onDisk moves the host's data directory to a file system of its own, and its
// artifact store with it.
func (h *host) onDisk(disk string) {
	h.t.Helper()
	h.data = filepath.Join(disk, "data")
	must(h.t, os.Mkdir(h.data, 0o700))
	store, err := artifact.OpenStore(filepath.Join(h.data, "artifacts"), h.cfg.Digest, h.cfg.Installed)
	must(h.t, err)
	fence, err := order.OpenFence(filepath.Join(h.data, "fence.json"))
	must(h.t, err)
	h.cfg.DataDir, h.cfg.Store, h.cfg.Fence = h.data, store, fence
}

// install moves the installed binary to another directory.
func (h *host) install(dir string) {
	h.t.Helper()
	binary, err := os.ReadFile(h.cfg.Installed)
	must(h.t, err)
	h.cfg.Installed = filepath.Join(dir, "moult")
	must(h.t, os.WriteFile(h.cfg.Installed, binary, 0o755))
}

// mustBeUntouched: the installed binary is what it was, and in neither
// directory is anything that is not whole.
func (h *host) mustBeUntouched() {
	h.t.Helper()
	if got := mustDigest(h.t, h.cfg.Installed); got != h.cfg.Digest {
		h.t.Errorf("the installed binary is %s, was %s", got, h.cfg.Digest)
	}
	for _, pattern := range []string{
		filepath.Join(filepath.Dir(h.cfg.Installed), ".*"), filepath.Join(h.data, ".*.new"),
		filepath.Join(h.data, "trial.json"), filepath.Join(h.data, "artifacts", "unverified-*"),
	} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			h.t.Errorf("left is %q, %v", left, err)
		}
	}
}

func TestFullDiskFailsTheJob(t *testing.T) {
	h := newHost(t)
	disk := disktest.Small(t, 4<<10)
	h.onDisk(disk)
	stop := h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0")+strings.Repeat("# filler\n", 100_000))
	giveBack := disktest.Fill(t, disk, 1<<20)
	h.mustFail("job-1", "1.1.0", p, "free some space and start the update again")
	h.mustBeUntouched()
	giveBack()
	// The next job finds its way again.
	h.ordered("job-2", "1.1.0", p, PhaseRestarting)
	_ = stop()
}

// Not even the record of the job fits: the host says so, and when it has room
// again goes on as if nothing had been.
func TestDiskWithoutRoomForTheRecord(t *testing.T) {
	h := newHost(t)
	disk := disktest.Small(t, 4<<10)
	h.onDisk(disk)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	sealed := h.order("job-1", "1.1.0", p)
	giveBack := disktest.Fill(t, disk, 0)
	h.updater.HandleOrder(fromServer, sealed)
	h.awaitPhase("failed job-1")
	h.await("the reason", func() bool { return strings.Contains(h.lastReport().Error, "no space left on device; check that") })
	h.mustBeUntouched()
	giveBack()
	h.ordered("job-2", "1.1.0", p, PhaseRestarting)
}

func TestDataDirectoryFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		flags  uintptr
		gone   bool
		reason string
	}{
		"noexec":    {flags: unix.MS_NOEXEC, reason: "perhaps mounted noexec: give --data a directory on one that is not"},
		"read-only": {flags: unix.MS_RDONLY, reason: "read-only file system; check that"},
		"gone":      {gone: true, reason: "no such file or directory; check that"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			disk := disktest.Small(t, 4<<10)
			h.onDisk(disk)
			h.run()
			p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
			if tt.gone {
				must(t, os.RemoveAll(h.data))
			} else {
				disktest.Remount(t, disk, tt.flags)
			}
			h.mustFail("job-1", "1.1.0", p, tt.reason)
			h.mustBeUntouched()
		})
	}
}

func TestInstalledPathFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		break_ func(t *testing.T, disk string)
		reason string
	}{
		"read-only": {func(t *testing.T, disk string) { disktest.Remount(t, disk, unix.MS_RDONLY) }, "cannot be written"},
		"full":      {func(t *testing.T, disk string) { disktest.Fill(t, disk, 64<<10) }, "KiB are needed; free "},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			disk := disktest.Small(t, 4<<10)
			h.install(disk)
			h.cfg.Place = install.InPlace
			h.run()
			p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
			tt.break_(t, disk)
			h.mustFail("job-1", "1.1.0", p, tt.reason)
			h.mustBeUntouched()
		})
	}
}

// What cannot be put over the installed binary goes on trial for the data directory,
// and the marker brings along what proves later that it may be executed.
func TestReadOnlyInstalledPathGoesToTheDataDirectory(t *testing.T) {
	h := newHost(t)
	disk := disktest.Small(t, 4<<10)
	h.install(disk)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, saysVersion("1.1.0"))
	disktest.Remount(t, disk, unix.MS_RDONLY)
	h.ordered("job-1", "1.1.0", p, PhaseRestarting)
	h.await("the reason in the log", func() bool {
		return strings.Contains(strings.Join(h.lines(), "\n"), "stays as it is, because directory "+disk+" cannot be written (read-only file system)")
	})
	m, err := install.LoadMarker(h.data)
	if err != nil || m.Place != install.InData || m.Release == nil {
		t.Fatalf("marker %+v, %v", m, err)
	}
	must(t, install.Activate(install.ActivateRequest{Staged: m.StagedPath, DataDir: h.data, Active: install.Active{
		Version: m.Version, Number: m.Number, Digest: m.Digest, Release: *m.Release, Packaged: h.cfg.Installed,
	}}))
	if a, err := ActiveBinary(h.data); err != nil || a.Version != "1.1.0" || a.Digest != p.digest {
		t.Errorf("active is %+v, %v", a, err)
	}
}

// A manifest may have nothing for this platform, or name another platform's
// binary as this one's.
func TestReleaseForAnotherPlatform(t *testing.T) {
	foreign := make([]byte, 64) // an ELF header, of a machine that this is not
	copy(foreign, "\x7fELF\x02\x01\x01")
	machine := uint16(183) // AArch64
	if runtime.GOARCH == "arm64" {
		machine = 62
	}
	binary.LittleEndian.PutUint16(foreign[16:], 2)
	binary.LittleEndian.PutUint16(foreign[18:], machine)
	binary.LittleEndian.PutUint32(foreign[20:], 1)
	binary.LittleEndian.PutUint16(foreign[52:], 64)
	h := newHost(t)
	h.run()
	p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, string(foreign))
	h.mustFail("job-1", "1.1.0", p, "this host is "+runtime.GOOS+"/"+runtime.GOARCH+"; publish a release")
	h.mustBeUntouched()

	text, err := json.Marshal(release.Manifest{
		Product: release.Product, Version: "1.2.0", Number: 6, Created: time.Now().UTC(),
		Artifacts: []release.Artifact{{OS: "plan9", Arch: "arm", Size: 64, SHA256: p.digest}},
	})
	must(t, err)
	sig, err := release.Sign(h.releaseKey, text)
	must(t, err)
	h.mustFail("job-2", "1.2.0", published{text, sig, p.digest}, "has no artifact for "+runtime.GOOS+"/"+runtime.GOARCH+"; publish one that has")
	h.mustBeUntouched()
}

func TestBinariesThatFailTheirSelfTest(t *testing.T) {
	for name, tt := range map[string]struct{ binary, reason string }{
		"crashes":      {"#!/bin/sh\necho cannot find libmoult >&2\nexit 7\n", `ended with exit status 7 (it printed "cannot find libmoult"); try it by hand`},
		"is killed":    {"#!/bin/sh\nkill -SEGV $$\n", "ended with signal: segmentation fault"},
		"lies":         {saysVersion("6.6.6"), `says it is version "6.6.6", its manifest says "1.1.0"`},
		"is no binary": {"just text\n\x00\x01", "exec format error"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.run()
			h.mustFail("job-1", "1.1.0", h.publish(release.Manifest{Version: "1.1.0", Number: 5}, tt.binary), tt.reason)
			h.mustBeUntouched()
		})
	}
}

// A near peer that misbehaves is passed over; who served bad bytes is named in
// the job's log and asked no more.
func TestBadPeersArePassedOver(t *testing.T) {
	content := saysVersion("1.1.0") + strings.Repeat("# filler\n", 30_000)
	flipped := []byte(content)
	flipped[len(flipped)/2] ^= 1
	serve := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(b)))
		}
	}
	for name, tt := range map[string]struct {
		conduct http.HandlerFunc
		log     string // what the job's log says of it
		asked   int64  // at most
	}{
		"flipped":   {serve(flipped), "bad is asked no more for the artifact: the bytes do not have the signed digest", 1},
		"truncated": {serve([]byte(content[:100_000])), "bad is asked no more for the artifact: what it has is not of the signed length", 1},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			junk := make([]byte, 64<<10)
			for r.Context().Err() == nil {
				if _, err := w.Write(junk); err != nil {
					return
				}
			}
		}, "bad is asked no more for the artifact: the bytes do not have the signed digest", 1},
		"refusing": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, "", 1},
		"breaking off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write([]byte(content[:1000]))
			panic(http.ErrAbortHandler)
		}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			var asked atomic.Int64
			bad := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				tt.conduct(w, r)
			}))
			t.Cleanup(bad.Close)
			honest := h.cfg.Candidates
			h.cfg.Candidates = func(d string) []artifact.Peer {
				p := honest(d)[0]
				p.Class = 1
				return []artifact.Peer{{HostID: "agent-3", Name: "bad", Addr: bad.Listener.Addr().String()}, p}
			}
			h.run()
			p := h.publish(release.Manifest{Version: "1.1.0", Number: 5}, content)
			h.ordered("job-1", "1.1.0", p, PhaseRestarting)
			h.await("the log", func() bool {
				return tt.log == "" || slices.ContainsFunc(h.lines(), func(l string) bool { return strings.Contains(l, tt.log) })
			})
			if n := asked.Load(); n > tt.asked {
				t.Errorf("the bad peer was asked %d times, want at most %d", n, tt.asked)
			}
			m, err := install.LoadMarker(h.data)
			must(t, err)
			if got := mustDigest(t, m.StagedPath); got != p.digest {
				t.Errorf("staged is %s, want %s", got, p.digest)
			}
		})
	}
}

// Old artifacts make room for new ones: what a host keeps is bounded.
func TestKeptArtifactsAreBounded(t *testing.T) {
	h := newHost(t)
	stop := h.run()
	var digests []string
	for i := range 6 {
		version := fmt.Sprintf("1.%d.0", i+1)
		p := h.publish(release.Manifest{Version: version, Number: uint64(i + 5)}, saysVersion("6.6.6")+"# "+version+"\n")
		h.mustFail(fmt.Sprint("job-", i), version, p, "6.6.6")
		written := time.Unix(int64(1000+i), 0)
		must(t, os.Chtimes(h.cfg.Store.Path(p.digest), written, written))
		digests = append(digests, p.digest)
	}
	must(t, stop())
	list, err := h.cfg.Store.List()
	must(t, err)
	want := slices.Sorted(slices.Values(digests[len(digests)-spareArtifacts-1:]))
	if !slices.Equal(list, want) {
		t.Errorf("kept are %v, want the newest %v", list, want)
	}
}
