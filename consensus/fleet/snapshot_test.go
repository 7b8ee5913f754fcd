package fleet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

type failer interface {
	Helper()
	Fatal(args ...any)
}

// reopened returns the state after a snapshot and a restore.
func reopened(tb failer, s *State) *State {
	tb.Helper()
	var snap bytes.Buffer
	if err := s.Snapshot(&snap); err != nil {
		tb.Fatal(err)
	}
	again := New()
	if err := again.Restore(&snap); err != nil {
		tb.Fatal(err)
	}
	return again
}

// reread returns an entry as the log gives it back.
func reread(tb failer, e Entry) Entry {
	tb.Helper()
	b, err := json.Marshal(e)
	if err != nil {
		tb.Fatal(err)
	}
	again, err := DecodeEntry(b)
	if err != nil {
		tb.Fatal(err)
	}
	return again
}

// sealed ends rows with a trailer that fits them.
func sealed(rows []byte) []byte {
	sum := sha256.Sum256(rows)
	return append(rows[:len(rows):len(rows)], fmt.Sprintf("{\"rows\":%d,\"sha256\":%q}\n", bytes.Count(rows, []byte("\n"))-1, hex.EncodeToString(sum[:]))...)
}

// unsealed returns a snapshot without its trailer. To append to it leaves the
// snapshot as it is.
func unsealed(snap []byte) []byte {
	return slices.Clip(snap[:bytes.LastIndexByte(snap[:len(snap)-1], '\n')+1])
}

func snapshotOf(tb testing.TB, s *State) []byte {
	tb.Helper()
	var snap bytes.Buffer
	if err := s.Snapshot(&snap); err != nil {
		tb.Fatal(err)
	}
	return snap.Bytes()
}

// full has a row in every table.
func full(tb testing.TB) *script {
	tb.Helper()
	s := fleetOf(tb, 2)
	s.must(joinToken("third"), HostEnrolled{TokenHash: "third", Host: host(3)}, denied("h3", 1))
	s.must(webhook("w1"), WebhookChanged{WebhookID: "w1", Kinds: &[]string{}, BearerToken: ptr("token")})
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}},
		JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"},
		JobLogAppended{JobID: "j1", First: 1, Lines: []LogLine{{Line: "one"}, {Line: "two"}}},
		JobFinished{JobID: "j1", Status: JobFailed, Error: "it crashed", Sources: []Source{{HostID: "h2", Bytes: 5}}},
		UserChanged{UserID: "u1", PasswordHash: "x", MustChange: true},
		SessionCreated{Session: Session{Hash: "s", UserID: "u1", ExpiresAt: epoch.AddDate(1, 0, 0)}, Network: "10.0.0.1"},
		LoginsTried{Tries: []LoginTry{{ID: "l", Name: "admin", Network: "10.0.0.1"}}})
	for _, table := range tables {
		if n := len(all[any](s.state.View().txn, false, table, "id")); n == 0 {
			tb.Fatalf("table %s is empty", table)
		}
	}
	return s
}

// differs names the first row in which two states differ, whether or not a
// snapshot tells of it: what it leaves out no hash can miss.
func differs(a, b *State) string {
	for _, table := range tables {
		left, right := all[any](a.View().txn, false, table, "id"), all[any](b.View().txn, false, table, "id")
		for i := range max(len(left), len(right)) {
			if i >= len(left) || i >= len(right) || !reflect.DeepEqual(left[i], right[i]) {
				return fmt.Sprintf("row %d of %s:\n%+v\n%+v", i, table, left[min(i, len(left)):], right[min(i, len(right)):])
			}
		}
	}
	return ""
}

func TestRestoreGivesTheSameState(t *testing.T) {
	s := full(t)
	again := reopened(t, s.state)
	if again.Hash() != s.state.Hash() {
		t.Fatal("another state")
	}
	if row := differs(s.state, again); row != "" {
		t.Error(row)
	}
	// The derived row counts too: they decide what is dropped next.
	if got, want := again.View().meta().size, s.state.View().meta().size; got != want || want.audit == 0 || want.jobs == 0 || want.logBytes == 0 || want.turns == 0 {
		t.Errorf("sizes: %+v, want %+v", got, want)
	}
}

// Servers of all versions write the same bytes for a state, whichever way they take:
// Hash is of them.
func TestSnapshotIsWhatTheEncoderWrites(t *testing.T) {
	s := full(t)
	s.must(JobLogAppended{JobID: "j1", First: 3, Lines: []LogLine{{Line: "<b>&amp;</b> \u2028 \x00 \"é\" \\"}}})
	var want bytes.Buffer
	enc := json.NewEncoder(&want)
	got := snapshotOf(t, s.state)
	for line := range bytes.Lines(unsealed(got)[bytes.IndexByte(got, '\n')+1:]) {
		var row snapshotRow
		if err := json.Unmarshal(line, &row); err != nil {
			t.Fatal(err)
		}
		want.Reset()
		if err := enc.Encode(row); err != nil || !bytes.Equal(want.Bytes(), line) {
			t.Errorf("written is %s, and the encoder writes %s: %v", line, want.Bytes(), err)
		}
	}
}

// A text that is cut must be cut between runes: half a rune comes back from a
// snapshot as U+FFFD.
func TestCutTextSurvivesASnapshot(t *testing.T) {
	for _, text := range []string{"é", "€", "😀", "x"} {
		for _, prefix := range []string{"", "a", "ab", "abc"} {
			long := prefix + strings.Repeat(text, 3*MaxReasonBytes)
			s := fleetOf(t, 1)
			s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"},
				JobLogAppended{JobID: "j", First: 1, Lines: []LogLine{{Line: long}}},
				JobDispatched{JobID: "j", HostID: "h1", FromVersion: long},
				JobFinished{JobID: "j", Status: JobFailed, Error: long, Sources: []Source{{Name: long}}})
			if reopened(t, s.state).Hash() != s.state.Hash() {
				t.Fatalf("%s%s…: another state", prefix, text)
			}
			if l := s.state.View().JobLog("j", 0, 1)[0].Line; len(l) > MaxLogLineBytes || !strings.HasSuffix(l, ellipsis) {
				t.Fatalf("line of %d bytes", len(l))
			}
		}
	}
}

func TestRestoreRefusesDamage(t *testing.T) {
	s := full(t)
	good := snapshotOf(t, s.state)
	before := s.state.Hash()
	lines := bytes.SplitAfter(unsealed(good), []byte("\n"))
	lines = lines[:len(lines)-1]
	without := func(prefix string) (out []byte) {
		for _, l := range lines {
			if !bytes.HasPrefix(l, []byte(prefix)) {
				out = append(out, l...)
			}
		}
		return out
	}
	last := lines[len(lines)-1]
	with := func(row string) []byte { return sealed(append(unsealed(good), row+"\n"...)) }
	if err := New().Restore(bytes.NewReader(sealed(unsealed(good)))); err != nil {
		t.Fatalf("the test's own trailer is refused: %v", err)
	}
	for name, bad := range map[string][]byte{
		"empty":             nil,
		"cut":               good[:len(good)/2],
		"cut newline":       good[:len(good)-1],
		"no trailer":        unsealed(good),
		"trailing":          append(bytes.Clone(good), "x\n"...),
		"not moult":         []byte("{}\n"),
		"flipped name":      bytes.Replace(good, []byte(`"agent-1"`), []byte(`"agent-7"`), 1),
		"lost row":          append(without(`{"t":"alerts"`), good[len(unsealed(good)):]...),
		"newer version":     sealed(bytes.Replace(unsealed(good), []byte(`"version":1}`), []byte(`"version":2}`), 1)),
		"sealed: twice":     sealed(append(unsealed(good), last...)),
		"sealed: no meta":   sealed(without(`{"t":"meta"`)),
		"sealed: two metas": with(`{"t":"meta","r":{"key":"other"}}`),
		"sealed: name":      with(`{"t":"hosts","r":{"id":"h9","name":"agent-1"}}`),
		"sealed: no key":    with(`{"t":"hosts","r":{"name":"agent-9"}}`),
		"sealed: no table":  with(`{"t":"moons","r":{}}`),
		"sealed: type":      with(`{"t":"hosts","r":{"id":7}}`),
		"sealed: no row":    with(`{"t":"hosts"}`),
	} {
		err := s.state.Restore(bytes.NewReader(bad))
		if !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
		if s.state.Hash() != before {
			t.Fatalf("%s: the state changed", name)
		}
	}
}

// Any single damaged byte is noticed.
func TestRestoreRefusesEveryFlippedByte(t *testing.T) {
	good := snapshotOf(t, fleetOf(t, 1).state)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x01
		if New().Restore(bytes.NewReader(bad)) == nil {
			t.Fatalf("byte %d of %d: restored", i, len(good))
		}
	}
}

func TestReadAndWriteErrorsOfSnapshots(t *testing.T) {
	s := full(t)
	broken := errors.New("disk is gone")
	good := snapshotOf(t, s.state)
	if err := New().Restore(io.MultiReader(bytes.NewReader(good[:50]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("restore: %v", err)
	}
	for room := range len(good) {
		if err := s.state.Snapshot(&smallDisk{room: room, err: broken}); !errors.Is(err, broken) {
			t.Fatalf("snapshot with room for %d of %d bytes: %v", room, len(good), err)
		}
	}
}

type smallDisk struct {
	room int
	err  error
}

func (d *smallDisk) Write(b []byte) (int, error) {
	if d.room -= len(b); d.room < 0 {
		return 0, d.err
	}
	return len(b), nil
}

// A view keeps showing what it showed.
func TestViewDoesNotChange(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h2"}})
	v := s.state.View()
	hash := v.Hash()
	u, _ := v.FleetUpdate("f")
	s.must(JobDispatched{JobID: "j1", HostID: "h1", FleetUpdateID: "f"}, FleetUpdateCancelled{ID: "f"})
	if err := s.state.Restore(bytes.NewReader(snapshotOf(t, New()))); err != nil {
		t.Fatal(err)
	}
	if v.Hash() != hash || u.Hosts.At(0).Status != TurnPending {
		t.Error("the view changed")
	}
}

func FuzzRestore(f *testing.F) {
	good := snapshotOf(f, full(f).state)
	f.Add(good, false)
	f.Add(unsealed(good), true)
	// One row of each table in turn, which a mutation changes with nothing else broken.
	rows := bytes.SplitAfter(unsealed(good), []byte("\n"))
	seen := map[string]bool{}
	for _, row := range rows[1:] {
		if table, _, _ := bytes.Cut(row, []byte(",")); !seen[string(table)] && len(row) > 0 {
			seen[string(table)] = true
			f.Add(append(bytes.Clone(rows[0]), row...), true)
		}
	}
	f.Add([]byte("{\"format\":\"moult-fleet\",\"version\":1}\n{\"t\":\"jobs\",\"r\":{\"id\":\"\\u0000\"}}\n"), true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal { // else hardly any input passes the checksum
			b = sealed(b)
		}
		s := New()
		if s.Restore(bytes.NewReader(b)) != nil {
			return
		}
		// What was accepted must work.
		queries(s.View())
		hash := s.Hash()
		if reopened(t, s).Hash() != hash {
			t.Error("another state after a second restore")
		}
		for n, c := range []Change{
			JobFinished{JobID: "j1", Status: JobSucceeded},
			FleetUpdateCancelled{ID: "f"},
			AlertRaised{AlertKind: AlertHostSilent, HostID: "h1", Message: "m"},
			denied("h1", 1),
			HostQuarantined{HostID: "h2", Why: "w"},
			ReleaseWithdrawn{Version: "B"},
			UserDeleted{UserID: "u1"},
		} {
			if s.View().Index() == math.MaxUint64 {
				return
			}
			e, _ := NewEntry(fmt.Sprint("p", n), "a", epoch, c)
			s.Apply(s.View().Index()+1, e)
		}
		queries(s.View())
		if hash := s.Hash(); reopened(t, s).Hash() != hash {
			t.Error("another state after changes on what was restored")
		}
	})
}

// queries runs every query.
func queries(v View) {
	for _, id := range []string{"", "x", "h1", "\x00", "j1"} {
		v.Host(id)
		v.HostByName(id)
		v.Release(id)
		v.FleetUpdate(id)
		v.Job(id)
		v.Jobs(id)
		v.OpenJob(id)
		v.JobLog(id, 0, 10)
		v.JobLog(id, math.MaxUint64, 10)
		v.JobLogHostSeq(id)
		v.Alert(id)
		v.User(id)
		v.UserByName(id)
		v.APITokenByHash(id)
		v.JoinTokenByHash(id)
		v.Session(id)
		v.Webhook(id)
		v.WebhookByName(id)
		v.NextNotification(id)
		v.Waiting(id)
	}
	v.Cluster()
	v.Hosts()
	v.Releases()
	v.NewestRelease()
	v.FleetUpdates()
	v.ActiveFleetUpdate()
	v.OpenJobs()
	v.Alerts()
	v.OpenAlerts()
	v.Audit(0, 10)
	v.Audit(math.MaxUint64, -1)
	v.Users()
	v.APITokens()
	v.JoinTokens()
	for _, w := range v.Webhooks() {
		w.Address()
		w.SigningKey()
	}
}
