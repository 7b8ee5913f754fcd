package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
	"moult/updater"
	"moult/updater/install"
	"moult/updater/order"
)

// lookAtDataDir returns whether there is anything to look at in it.
func (d *diagnosis) lookAtDataDir(data string) bool {
	const check = "data directory"
	st, err := os.Stat(data)
	switch {
	case errors.Is(err, os.ErrNotExist):
		d.fail(check, "name the right one with --data, or let this host join: moult agent --help", "%s does not exist", data)
		return false
	case err != nil:
		d.fail(check, "run this as the user that the agent runs as", "%v", err)
		return false
	case !st.IsDir():
		d.fail(check, "name the right one with --data", "%s is not a directory", data)
		return false
	}
	if runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		d.warn(check, "chmod 700 "+data, "%s is open to other users (mode %04o)", data, st.Mode().Perm())
	}
	probe, err := os.CreateTemp(data, ".doctor-*")
	if err != nil {
		d.fail(check, "run this as the user that the agent runs as; is the file system mounted read-only?", "%s cannot be written: %v", data, err)
		return true
	}
	probe.Close()
	os.Remove(probe.Name())
	if err := install.CheckSpace(data, roomForUpdate); err != nil {
		d.fail("disk", "free some space, or move --data to a larger disk", "%v", err)
		return true
	}
	d.ok(check, "%s can be written and has room for an update", data)
	return true
}

func (d *diagnosis) lookAtIdentity(data string) (identity.Credentials, bool) {
	const check = "certificate"
	dir := filepath.Join(data, "identity")
	if _, err := os.Stat(dir); err != nil { // opening the store would make it
		d.fail(check, "let it join: moult agent --join ADDR --token-file FILE, with a token of: moult token create", "this host has joined no cluster: %v", err)
		return identity.Credentials{}, false
	}
	ids, err := identity.OpenStore(dir)
	var creds identity.Credentials
	if err == nil {
		creds, err = ids.Load()
	}
	if err != nil {
		d.fail(check, "let it join, with a token of: moult token create", "%v", err)
		return creds, false
	}
	block, _ := pem.Decode(creds.CertPEM)
	if block == nil {
		d.fail(check, "move identity/ away and join again with a new token", "cert.pem holds no certificate")
		return creds, false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		d.fail(check, "move identity/ away and join again with a new token", "cert.pem: %v", err)
		return creds, false
	}
	d.lookAtCertificate(creds, cert, time.Now())
	d.lookAtCAs(nodekit.FollowedBy(creds))
	d.lookAtGossipKeys(creds)
	d.lookAtReleaseKeys(data, creds)
	return creds, true
}

func (d *diagnosis) lookAtRunning(data string) (nodekit.RunningNode, bool) {
	const check = "process"
	running, err := nodekit.ReadRunning(data)
	if errors.Is(err, os.ErrNotExist) {
		d.fail(check, "start it: moult agent --help", "no agent or server has run on %s yet", data)
		return running, false
	}
	if err != nil {
		d.fail(check, "start the agent or server again: it writes the file anew", "%v", err)
		return running, false
	}
	return running, true
}

// lookAtInstalled tries whether an update could be put in place, with this
// program as the new one. Nothing is replaced.
func (d *diagnosis) lookAtInstalled(ctx context.Context, data, binary string, wish install.Place) {
	const check = "update"
	if _, err := order.OpenFence(filepath.Join(data, "fence.json")); err != nil {
		d.fail(check, "see the message", "this host takes no orders: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		d.warn(check, "", "cannot be tried: this program does not find itself: %v", err)
		return
	}
	dir, err := os.MkdirTemp(data, ".doctor-*")
	if err != nil {
		return // said already
	}
	defer os.RemoveAll(dir)
	staged := filepath.Join(dir, filepath.Base(self))
	if err := copyExecutable(self, staged); err != nil {
		d.fail(check, "free some space", "cannot be tried: %v", err)
		return
	}
	digest, err := nodekit.FileDigest(staged)
	var found install.Verdict
	if err == nil {
		found, err = install.Preflight(ctx, install.PreflightRequest{
			Staged: staged, Digest: digest, Installed: binary, DataDir: data, Version: version, Wish: wish,
		})
	}
	if err != nil {
		d.fail(check, "see the message", "could not be put in place of %s: %v", binary, err)
		return
	}
	if found.Place == install.InData {
		d.ok(check, "would go to %s, because %s; %s hands over to it", install.ActiveDir(data), found.Why, binary)
		return
	}
	d.ok(check, "could be put in place of %s", binary)
}

// lookAtActive tells where the binary is that runs here, or would.
func (d *diagnosis) lookAtActive(data, binary string) {
	const check = "active binary"
	a, err := updater.ActiveBinary(data)
	switch {
	case errors.Is(err, install.ErrNoActive) && binary != "":
		d.ok(check, "%s, the installed one", binary)
	case errors.Is(err, install.ErrNoActive):
	case err != nil:
		d.fail(check, "update this host again, which replaces it; until then the packaged binary runs: moult host update NAME", "%v", err)
	default:
		d.ok(check, "%s in %s (release number %d); %s hands over to it", a.Version, install.ActivePath(data, a.Digest), a.Number, a.Packaged)
	}
}

// roomForUpdate is the free space below which a data directory is reported: the
// staged release, and the one before it.
const roomForUpdate = 64 << 20 // bytes
