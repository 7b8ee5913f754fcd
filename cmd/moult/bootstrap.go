package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/uuid"

	"moult/consensus/fleet"
	"moult/mesh/identity"
	"moult/updater/release"
	"moult/webui"
)

const (
	// bootstrapFile holds the cluster's first entry until it is committed, so
	// that a bootstrap that was interrupted goes on where it stopped.
	bootstrapFile = "bootstrap.json"
	// bootstrapOnceFile in the data directory is as --bootstrap, once: whoever prepares a
	// service leaves it there, and bootstrapping removes it.
	bootstrapOnceFile = "bootstrap.once"

	gossipKeyBytes = 32
)

// enrol returns this host's credentials, getting them first when it has none:
// by making a cluster, or by joining one.
func enrol(ctx context.Context, store *identity.Store, o nodeOptions, httpAddr string, bootstrap func(hostID string) error) (identity.Credentials, error) {
	if store.Enrolled() {
		creds, err := store.Load()
		if err != nil {
			return creds, err
		}
		return creds, refuseForeignToken(o, creds)
	}
	role := identity.RoleAgent
	if httpAddr != "" { // only servers have one
		role = identity.RoleServer
	}
	if err := o.checkPorts(); err != nil {
		return identity.Credentials{}, err
	}
	hostID, _, err := store.HostKey()
	if err != nil {
		return identity.Credentials{}, err
	}
	if bootstrap != nil {
		if err := bootstrap(hostID); err != nil {
			return identity.Credentials{}, fmt.Errorf("bootstrap: %w", err)
		}
		_ = os.Remove(filepath.Join(o.data, bootstrapOnceFile)) // from here on the directory has its cluster
		return store.Load()
	}
	if len(o.join) == 0 {
		next := "make a token on a server with `moult token create` and give --join and --token-file"
		if role == identity.RoleServer {
			next += ", or make a new cluster with --bootstrap"
		}
		return identity.Credentials{}, fmt.Errorf("%s belongs to no cluster yet; %s", o.data, next)
	}
	text, err := o.joinToken()
	if err != nil {
		return identity.Credentials{}, err
	}
	if text == "" {
		return identity.Credentials{}, errors.New("joining takes a token; make one on a server with `moult token create` and give it by --token-file or MOULT_TOKEN")
	}
	token, err := identity.ParseToken(text)
	if err != nil {
		return identity.Credentials{}, err
	}
	req := identity.JoinRequest{
		Role: role, HostID: hostID, Name: o.name, OS: runtime.GOOS, Arch: runtime.GOARCH, Version: o.build.version,
		GossipAddr: o.gossipAdv, PeerAddr: o.peerAdv, HTTPAddr: httpAddr,
		Also: o.segmentAddrs(),
	}
	var errs []error
	for _, addr := range o.join {
		creds, err := identity.Join(ctx, addr, token, store, req)
		if err == nil {
			_ = os.Remove(filepath.Join(o.data, joinTokenFile)) // it is used up, whoever left it
			return creds, nil
		}
		errs = append(errs, fmt.Errorf("join through %s: %w", addr, err))
	}
	return identity.Credentials{}, errors.Join(errs...)
}

// refuseForeignToken refuses a join token of another cluster than the one that
// the data directory belongs to: whoever gives it expects to join that one. Any
// other token, used up or not a join token at all, is not needed and changes
// nothing.
func refuseForeignToken(o nodeOptions, creds identity.Credentials) error {
	text, err := o.joinToken()
	if err != nil {
		return nil //nolint:nilerr // the file that held the token may well be gone
	}
	token, err := identity.ParseToken(text)
	if err != nil {
		return nil //nolint:nilerr // MOULT_TOKEN may hold an API token
	}
	if creds.Trusted.Knows(token.CAHash) {
		return nil
	}
	return fmt.Errorf("%w: %s is of cluster %s, the join token is of another one; give a new directory with --data, or leave the token out",
		identity.ErrOtherCluster, o.data, creds.Cluster)
}

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
	id := identity.Identity{Cluster: clusterID, HostID: hostID, Name: o.name, Role: identity.RoleServer}
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
			ID: hostID, Name: o.name, Role: fleet.RoleServer, Segment: fleet.DefaultSegment,
			OS: runtime.GOOS, Arch: runtime.GOARCH, PublicKey: public,
			GossipAddr: o.gossipAdv, PeerAddr: o.peerAdv, HTTPAddr: o.http, EnrolledAt: now,
			Also: hostSegments(o.segmentAddrs()),
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
		if err := writeFileAtomic(filepath.Join(o.data, name), content, 0o600); err != nil {
			return err
		}
	}
	var also []identity.Segment
	for _, s := range o.also {
		known, err := firstKeys(first.Cluster, s.name, nil)
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
	if o.json && !stdoutIsJournal(stdout) {
		return printJSON(stdout, bootstrapReport(o, password))
	}
	if stdoutIsJournal(stdout) { // no secret in a log
		fmt.Fprintf(stdout, "login:     admin, password in %s\n", filepath.Join(o.data, adminPasswordFile))
	} else {
		fmt.Fprintf(stdout, "login:     admin / %s\n", password)
	}
	if !o.keepPassword {
		fmt.Fprintln(stdout, "           the first sign-in asks for another password")
	}
	fmt.Fprintf(stdout, "API token: in %s\n", filepath.Join(o.data, adminTokenFile))
	if len(o.releaseKeyFile) == 0 {
		fmt.Fprintf(stdout, "release key (secret): %s — move it off this server\n", filepath.Join(o.data, releaseKeyFile))
	}
	return nil
}

// bootstrapReport is what bootstrapping tells programs.
func bootstrapReport(o serverOptions, password string) map[string]any {
	report := map[string]any{
		"user": "admin", "password": password, "must_change_password": !o.keepPassword,
		"token_file": filepath.Join(o.data, adminTokenFile),
	}
	if len(o.releaseKeyFile) == 0 {
		report["release_key_file"] = filepath.Join(o.data, releaseKeyFile)
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
	if err := writeFileAtomic(filepath.Join(o.data, releaseKeyFile), []byte(secret), 0o600); err != nil {
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
