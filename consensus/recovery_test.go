package consensus

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// mustCluster commits the first entry of a cluster whose only known server is s1.
func mustCluster(t *testing.T, s *server) {
	t.Helper()
	mustPropose(t, s, fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c1"}, Server: fleet.Host{ID: "s1", Name: "server-1"},
		Admin: fleet.User{ID: "u1", Name: "admin", PasswordHash: "x"}, Token: fleet.APIToken{ID: "t1", Name: "bootstrap", Hash: "h1"},
	})
}

func beginning(t *testing.T, epoch uint64, id string) fleet.Entry {
	t.Helper()
	e, err := fleet.NewEntry("begin-"+id, "system", time.Now(), fleet.EpochBegun{
		Epoch: epoch, Statement: []byte("signed"), Reason: "a test",
		Server: fleet.Host{ID: id, Name: "server-" + id, Segment: "default", OS: "linux", Arch: "amd64", PublicKey: make([]byte, 32)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustSnapshot(t *testing.T, v fleet.View) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := v.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A restored group has the state of the backup, one server, and indexes that the
// lost one cannot have come to. New servers join it as they do any group.
func TestRestoredGroupGoesOn(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader := c.AwaitLeader()
	mustCluster(t, leader)
	mustPropose(t, leader, user("backed-up"))
	backup := mustSnapshot(t, leader.View())
	mustPropose(t, leader, user("too-late"))
	lost := leader.AppliedIndex()
	for _, s := range c.all() {
		c.Kill(s)
	}

	dir := filepath.Join(c.dir, "r1")
	address := leader.addr // as an operator may choose it
	if err := Restore(dir, Member{"r1", address}, bytes.NewReader(backup), beginning(t, 4, "r1")); err != nil {
		t.Fatal(err)
	}
	if err := Restore(dir, Member{"r1", address}, bytes.NewReader(backup), beginning(t, 5, "r1")); !errors.Is(err, ErrBootstrapped) {
		t.Errorf("restored twice: %v", err)
	}
	first := c.open("r1", address)
	awaitSoon(t, "it leads", first.IsLeader)
	v := first.View()
	if cl, _ := v.Cluster(); cl.Epoch != 4 || !hasUser(first, "backed-up") || hasUser(first, "too-late") {
		t.Errorf("epoch %d, backed-up %t, too-late %t", cl.Epoch, hasUser(first, "backed-up"), hasUser(first, "too-late"))
	}
	if v.Index() < lost+indexGap-10 {
		t.Errorf("it begins at %d, the lost one was at %d", v.Index(), lost)
	}
	if a := v.Audit(0, 1); a[0].Action != "epoch_begun" || a[0].Index != v.Index() {
		t.Errorf("audit: %+v", a[0])
	}
	if got := first.Servers(); len(got) != 1 || got[0].ID != "r1" {
		t.Errorf("servers: %+v", got)
	}
	mustPropose(t, first, user("after"))
	second := c.open("r2", "")
	if err := first.AddServer(c.within(patience), second.id, second.addr); err != nil {
		t.Fatal(err)
	}
	awaitSoon(t, "the second server is a voter", func() bool { return second.voters() == 2 && second.Ready() == nil })
	c.AwaitEqual()
	c.Stop(first)
	c.Stop(second)
	again := c.open("r1", address)
	c.open("r2", second.addr)
	awaitSoon(t, "they are back after a restart", func() bool { return again.Ready() == nil && hasUser(again, "after") })
	c.AwaitEqual()
}

func TestDamagedSnapshotIsNotRestored(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.all()[0]
	mustCluster(t, s)
	backup := mustSnapshot(t, s.View())
	dir := filepath.Join(t.TempDir(), "raft")
	for name, damaged := range map[string][]byte{
		"cut off": backup[:len(backup)-10],
		"altered": bytes.Replace(backup, []byte("server-1"), []byte("server-2"), 1),
		"empty":   nil,
	} {
		if err := Restore(dir, Member{"r1", "127.0.0.1:1"}, bytes.NewReader(damaged), beginning(t, 1, "r1")); !errors.Is(err, fleet.ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: the directory was made", name)
		}
	}
}

// Of three servers one is left. It goes on alone, with all that was acknowledged
// while it was up, in an epoch of its own.
func TestRecoveredServerGoesOnAlone(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader := c.AwaitLeader()
	mustCluster(t, leader)
	mustPropose(t, leader, user("acknowledged"))
	c.AwaitEqual()
	left := c.Followers(leader)[0]
	self := Member{left.id, left.addr}
	dir := filepath.Join(c.dir, left.id)
	if _, err := Inspect(dir, self); err == nil || !strings.Contains(err.Error(), "another moult server uses") {
		t.Errorf("inspected while it runs: %v", err)
	}
	for _, s := range c.all() {
		c.Kill(s)
	}
	stopped, err := Inspect(dir, self)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := stopped.State.View().UserByName("acknowledged"); !ok || len(stopped.Servers) != 3 || stopped.LastIndex < leader.AppliedIndex() {
		t.Errorf("found %d servers, index %d, the user: %t", len(stopped.Servers), stopped.LastIndex, ok)
	}
	if err := Recover(dir, self, beginning(t, 2, left.id)); err != nil {
		t.Fatal(err)
	}
	left = c.open(left.id, left.addr)
	awaitSoon(t, "it leads", left.IsLeader)
	if cl, _ := left.View().Cluster(); cl.Epoch != 2 || !hasUser(left, "acknowledged") || left.AppliedIndex() < stopped.LastIndex+indexGap {
		t.Errorf("epoch %d, index %d, the user: %t", cl.Epoch, left.AppliedIndex(), hasUser(left, "acknowledged"))
	}
	if got := left.Servers(); len(got) != 1 || got[0].ID != left.id {
		t.Errorf("servers: %+v", got)
	}
	mustPropose(t, left, user("alone"))
	// What was lost comes back as new servers.
	second := c.open("n2", "")
	if err := left.AddServer(c.within(patience), second.id, second.addr); err != nil {
		t.Fatal(err)
	}
	awaitSoon(t, "a new server is a voter", func() bool { return second.voters() == 2 && second.Ready() == nil })
	c.AwaitEqual()
}

func TestNothingIsRecoveredFromAnEmptyDirectory(t *testing.T) {
	if err := Recover(t.TempDir(), Member{"s1", "127.0.0.1:1"}, beginning(t, 1, "s1")); err == nil || !strings.Contains(err.Error(), "no initial state") {
		t.Errorf("recovered: %v", err)
	}
}
