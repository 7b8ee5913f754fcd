package nodekit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"moult/mesh/identity"
)

const (
	// BootstrapOnceFile in the data directory is as --bootstrap, once: whoever prepares a
	// service leaves it there, and bootstrapping removes it.
	BootstrapOnceFile = "bootstrap.once"
)

// Enrol returns this host's credentials, getting them first when it has none:
// by making a cluster, or by joining one.
func Enrol(ctx context.Context, store *identity.Store, o NodeOptions, httpAddr string, bootstrap func(hostID string) error) (identity.Credentials, error) {
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
		_ = os.Remove(filepath.Join(o.Data, BootstrapOnceFile)) // from here on the directory has its cluster
		return store.Load()
	}
	if len(o.Join) == 0 {
		next := "make a token on a server with `moult token create` and give --join and --token-file"
		if role == identity.RoleServer {
			next += ", or make a new cluster with --bootstrap"
		}
		return identity.Credentials{}, fmt.Errorf("%s belongs to no cluster yet; %s", o.Data, next)
	}
	text, err := o.JoinToken()
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
		Role: role, HostID: hostID, Name: o.Name, OS: runtime.GOOS, Arch: runtime.GOARCH, Version: o.Build.Version,
		GossipAddr: o.GossipAdv, PeerAddr: o.PeerAdv, HTTPAddr: httpAddr,
		Also: o.SegmentAddrs(),
	}
	var errs []error
	for _, addr := range o.Join {
		creds, err := identity.Join(ctx, addr, token, store, req)
		if err == nil {
			_ = os.Remove(filepath.Join(o.Data, JoinTokenFile)) // it is used up, whoever left it
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
func refuseForeignToken(o NodeOptions, creds identity.Credentials) error {
	text, err := o.JoinToken()
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
		identity.ErrOtherCluster, o.Data, creds.Cluster)
}
