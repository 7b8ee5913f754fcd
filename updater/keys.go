package updater

import (
	"context"
	"fmt"
	"time"

	"moult/updater/install"
	"moult/updater/order"
	"moult/updater/release"
)

// expiryReminder is how often a host says that the release it runs has expired
// and no newer one came.
const expiryReminder = 24 * time.Hour

// pinKeys writes down the release keys that this host was given when it joined.
// From then on only a signed statement changes them, whatever a server says.
func (u *Updater) pinKeys() error {
	u.trustMu.Lock()
	defer u.trustMu.Unlock()
	t, err := loadTrust(u.cfg.DataDir)
	if err == nil && t.Keys != nil && t.Keys.Cluster == u.cfg.Cluster {
		u.tellFork(t.Keys.Fork)
		return nil
	}
	if err != nil || len(u.cfg.ReleaseKeys.Keys) == 0 {
		return err
	}
	t.Keys = &pinnedKeys{Cluster: u.cfg.Cluster, KeySet: u.cfg.ReleaseKeys}
	return install.SaveSealed(trustPath(u.cfg.DataDir), t)
}

// PinnedKeys returns the release keys that a host believes now, for what verifies
// manifests beside the updater: those in DATA/trust.json, else the given ones,
// which it got when it joined. With a file that cannot be read it believes none.
func PinnedKeys(dataDir, cluster string, given release.KeySet) release.KeySet {
	t, err := loadTrust(dataDir)
	switch {
	case err != nil:
		return release.KeySet{}
	case t.Keys != nil && t.Keys.Cluster == cluster:
		return t.Keys.KeySet
	}
	return given
}

// keysOf returns the release keys to believe.
func (u *Updater) keysOf(t trust) release.KeySet {
	if t.Keys != nil && t.Keys.Cluster == u.cfg.Cluster {
		return t.Keys.KeySet
	}
	return u.cfg.ReleaseKeys // nothing could be written yet
}

// TakeKeyStatements follows signed statements that change the release keys, in
// the order of their numbers, each verified with the keys that are pinned before
// it. Those that are known already are passed over; of another one with a known
// number the servers are told (ErrForkedKeys). It returns the number of the
// newest one that this host follows, and why it stopped where it did; what it
// followed is on disk. Safe for concurrent use.
func (u *Updater) TakeKeyStatements(list []release.SignedStatement) (number uint64, err error) {
	u.trustMu.Lock()
	defer u.trustMu.Unlock()
	t, err := loadTrust(u.cfg.DataDir)
	if err != nil {
		return 0, err
	}
	before := pinnedKeys{Cluster: u.cfg.Cluster, KeySet: u.keysOf(t)}
	if t.Keys != nil && t.Keys.Cluster == u.cfg.Cluster {
		before = *t.Keys
	}
	now, err := before.follow(list)
	forked := now.Fork != nil && (before.Fork == nil || *now.Fork != *before.Fork)
	if forked {
		// Told whether or not it can be written down.
		u.slog.Error("there are two statements of the release keys with one number: somebody has signed twice; this host keeps to the first that it followed",
			"number", now.Fork.Number, "follows", now.Fork.Follows, "refused", now.Fork.Refused)
		u.tellFork(now.Fork)
	}
	if now.Number == before.Number && !forked {
		return before.Number, err
	}
	t.Keys = &now
	if saved := install.SaveSealed(trustPath(u.cfg.DataDir), t); saved != nil {
		return before.Number, fmt.Errorf("remember the new release keys: %w", saved)
	}
	if now.Number != before.Number {
		u.slog.Info("release keys changed by a signed statement", "number", now.Number, "keys", len(now.Keys), "threshold", now.Needed())
	}
	return now.Number, err
}

// runningNumber is the number of the release that runs here: by this host's own
// record, else by the signed manifest of it that the order brings along.
func (u *Updater) runningNumber(t trust, o order.Order) uint64 {
	if n, known := t.running(u.cfg.Digest); known {
		return n
	}
	m, err := release.Verify(u.keysOf(t), o.FromManifest, o.FromSignature)
	if err != nil {
		return 0
	}
	for _, a := range m.Artifacts {
		if a.SHA256 == u.cfg.Digest {
			return m.Number
		}
	}
	return 0
}

// watchExpiry says, again and again, that the release which runs here has expired
// and none came after it: somebody may be keeping newer ones from this host. It
// is an alarm only; what runs goes on running.
func (u *Updater) watchExpiry(ctx context.Context) {
	for {
		wait := expiryReminder
		u.trustMu.Lock()
		t, err := loadTrust(u.cfg.DataDir)
		u.trustMu.Unlock()
		if err == nil && t.Installed != nil && t.Installed.Digest == u.cfg.Digest && t.Installed.Expires != nil {
			if left := time.Until(*t.Installed.Expires); left > 0 {
				wait = min(wait, left)
			} else {
				u.slog.Warn("the release that runs here has expired and no newer one came; publish one, or find out who keeps it from this host",
					"release", t.Installed.Version, "expired", t.Installed.Expires.UTC().Format(time.RFC3339))
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
