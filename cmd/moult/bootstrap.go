package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/uuid"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/release"
	"moult/webui"
)

const (
	// bootstrapFile holds the cluster's first entry until it is committed, so
	// that a bootstrap that was interrupted goes on where it stopped.
	bootstrapFile = "bootstrap.json"

	gossipKeyBytes = 32
)

// bootstrapCluster makes a cluster: its CA, keys, first admin, and this
// server's own identity. Nothing is in Raft yet; see joinRaft.
func bootstrapCluster(store *identity.Store, o serverOptions, hostID string, stdout io.Writer) error {
	now := time.Now()
	clusterID := uuid.NewString()
	ca, err := identity.NewCA(clusterID, now)
	if err != nil {
		return err
	}
	_, key, err := store.HostKey()
	if err != nil {
		return err
	}
	id := identity.Identity{Cluster: clusterID, HostID: hostID, Name: o.Name, Role: identity.RoleServer}
	public := publicKey(key)
	cert, err := ca.Issue(id, public, now, o.certLifetime)
	if err != nil {
		return err
	}
	gossipKey := make([]byte, gossipKeyBytes)
	rand.Read(gossipKey) // never fails
	releaseKeys, err := pinnedReleaseKeys(o)
	if err != nil {
		return err
	}
	password, tokenSecret := rand.Text()[:16], "moult_"+rand.Text()
	hash, err := webui.HashPassword(password)
	if err != nil {
		return err
	}
	first := fleet.ClusterInitialized{
		Cluster: fleet.Cluster{
			ID: clusterID, CACert: ca.CertPEM(), CAKey: ca.KeyPEM(),
			GossipKeys: [][]byte{gossipKey}, ReleaseKeys: releaseKeys, CreatedAt: now,
			ReleaseThreshold: o.releaseThreshold,
		},
		Server: fleet.Host{
			ID: hostID, Name: o.Name, Role: fleet.RoleServer, Segment: fleet.DefaultSegment,
			OS: runtime.GOOS, Arch: runtime.GOARCH, PublicKey: public,
			GossipAddr: o.GossipAdv, PeerAddr: o.PeerAdv, HTTPAddr: o.http, EnrolledAt: now,
			Also: hostSegments(o.SegmentAddrs()),
		},
		Admin: fleet.User{
			ID: uuid.NewString(), Name: "admin", Role: fleet.Admin, PasswordHash: hash, CreatedAt: now,
			MustChangePassword: !o.keepPassword,
		},
		Token: fleet.APIToken{ID: uuid.NewString(), Name: "bootstrap", Role: fleet.Admin, Hash: sha256Hex(tokenSecret), CreatedAt: now, CreatedBy: "system"},
	}
	text, err := json.Marshal(first)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		bootstrapFile:     text,
		adminTokenFile:    []byte(tokenSecret + "\n"),
		adminPasswordFile: []byte(password + "\n"),
	} {
		if err := nodekit.WriteFileAtomic(filepath.Join(o.Data, name), content, 0o600); err != nil {
			return err
		}
	}
	var also []identity.Segment
	for _, s := range o.Also {
		known, err := firstKeys(first.Cluster, s.Name, nil)
		if err != nil {
			return err
		}
		also = append(also, known)
	}
	// Last: from here on the directory belongs to the new cluster.
	err = store.Save(identity.Enrolment{
		Identity: id, CertPEM: cert, CAPEM: ca.CertPEM(), Segment: fleet.DefaultSegment,
		GossipKeys: first.Cluster.GossipKeys, ReleaseKeys: releaseKeys, Also: also,
		KeyPolicy: identity.KeyPolicy{ReleaseThreshold: o.releaseThreshold},
	})
	if err != nil {
		return err
	}
	if o.Json && !stdoutIsJournal(stdout) {
		return printJSON(stdout, bootstrapReport(o, password))
	}
	if stdoutIsJournal(stdout) { // no secret in a log
		fmt.Fprintf(stdout, "login:     admin, password in %s\n", filepath.Join(o.Data, adminPasswordFile))
	} else {
		fmt.Fprintf(stdout, "login:     admin / %s\n", password)
	}
	if !o.keepPassword {
		fmt.Fprintln(stdout, "           the first sign-in asks for another password")
	}
	fmt.Fprintf(stdout, "API token: in %s\n", filepath.Join(o.Data, adminTokenFile))
	if len(o.releaseKeyFile) == 0 {
		fmt.Fprintf(stdout, "release key (secret): %s — move it off this server\n", filepath.Join(o.Data, releaseKeyFile))
	}
	return nil
}

// bootstrapReport is what bootstrapping tells programs.
func bootstrapReport(o serverOptions, password string) map[string]any {
	report := map[string]any{
		"user": "admin", "password": password, "must_change_password": !o.keepPassword,
		"token_file": filepath.Join(o.Data, adminTokenFile),
	}
	if len(o.releaseKeyFile) == 0 {
		report["release_key_file"] = filepath.Join(o.Data, releaseKeyFile)
	}
	return report
}

// pinnedReleaseKeys reads the public keys given, or makes a pair.
func pinnedReleaseKeys(o serverOptions) ([]string, error) {
	var keys []string
	for _, path := range o.releaseKeyFile {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read --release-key: %w", err)
		}
		key, err := release.ParsePublicKey(string(text))
		if err != nil {
			return nil, fmt.Errorf("--release-key %s: %w", path, err)
		}
		keys = append(keys, key)
	}
	if len(keys) > 0 {
		if err := (release.KeySet{Threshold: o.releaseThreshold, Keys: keys}).Check(); err != nil {
			return nil, fmt.Errorf("--release-key, --release-threshold: %w", err)
		}
		return keys, nil
	}
	if o.releaseThreshold > 1 {
		return nil, fmt.Errorf("--release-threshold %d takes as many --release-key; make them with: moult key generate", o.releaseThreshold)
	}
	public, secret, err := release.GenerateKey()
	if err != nil {
		return nil, err
	}
	key, err := release.ParsePublicKey(public)
	if err != nil {
		return nil, err
	}
	if err := nodekit.WriteFileAtomic(filepath.Join(o.Data, releaseKeyFile), []byte(secret), 0o600); err != nil {
		return nil, err
	}
	return []string{key}, nil
}

// pendingBootstrap returns the first entry that is still to be committed.
func pendingBootstrap(dataDir string) (*fleet.ClusterInitialized, error) {
	text, err := os.ReadFile(filepath.Join(dataDir, bootstrapFile))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var first fleet.ClusterInitialized
	if err := json.Unmarshal(text, &first); err != nil {
		return nil, fmt.Errorf("%s: %w; remove the data directory and bootstrap again", bootstrapFile, err)
	}
	return &first, nil
}

func sha256Hex(s string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(s)))
	return hex.EncodeToString(sum[:])
}
