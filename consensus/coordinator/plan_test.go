package coordinator

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

var update = flag.Bool("update", false, "write the scenarios' outcomes anew")

// TestPlan runs the scenarios in testdata/plan. A scenario is a story of
// commands, each followed by what came of it, indented. README.md there lists
// the commands.
func TestPlan(t *testing.T) {
	files, err := filepath.Glob("testdata/plan/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, want)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: the outcome differs (go test -run TestPlan -update writes it anew)\n--- got\n%s\n--- want\n%s", file, got, want)
			}
		})
	}
}

// play runs a scenario's commands and returns it with its outcomes.
func play(t *testing.T, scenario []byte) []byte {
	w := newWorld(t)
	var out bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(scenario))
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "    ") {
			continue // an outcome
		}
		fmt.Fprintln(&out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for _, said := range w.command(words(t, line)) {
			fmt.Fprintln(&out, "    "+said)
		}
	}
	return out.Bytes()
}

// words splits at spaces outside quotes, and removes the quotes.
func words(t *testing.T, line string) (out []string) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " ") {
		var word strings.Builder
		for line != "" && line[0] != ' ' {
			if line[0] != '"' {
				word.WriteByte(line[0])
				line = line[1:]
				continue
			}
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			text, _ := strconv.Unquote(quoted)
			word.WriteString(text)
			line = line[len(quoted):]
		}
		out = append(out, word.String())
	}
	return out
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is a real state, made-up observations and a clock that is set by hand.
type world struct {
	t     testing.TB
	state *fleet.State
	index uint64
	now   time.Time
	seen  map[string]Observation
	mem   memory
	jobs  int
	fleet string // the last fleet update
	hosts int

	unreachable UnreachablePolicy
	stageWait   time.Duration

	leader  string          // the server that plans
	servers map[string]bool // whether each votes
	sick    map[string]bool // servers that are not healthy
}

func newWorld(t testing.TB) *world {
	w := &world{
		t: t, state: fleet.New(), now: epoch, seen: map[string]Observation{}, mem: memory{since: epoch.Add(-time.Hour)},
		leader: "server-1", servers: map[string]bool{"server-1": true}, sick: map[string]bool{},
	}
	w.seen["server-1"] = serverAt("A")
	w.must(fleet.ClusterInitialized{
		Cluster: fleet.Cluster{ID: "c"}, Server: fleet.Host{ID: "server-1", Name: "server-1", OS: "linux", Arch: "amd64"},
		Admin: fleet.User{ID: "u", Name: "ann"}, Token: fleet.APIToken{ID: "t", Name: "t", Hash: "t"},
	})
	return w
}

func (w *world) apply(c fleet.Change) fleet.Result {
	w.index++
	e, err := fleet.NewEntry(strconv.FormatUint(w.index, 10), "user:ann", w.now, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.state.Apply(w.index, e)
}

func (w *world) must(c fleet.Change) {
	w.t.Helper()
	if r := w.apply(c); r.Err != nil {
		w.t.Fatalf("%s: %s", c.Kind(), r.Err.Message)
	}
}

// digest is the sha256 of a version's binary for a platform, in this world.
func digest(version, platform string) string {
	sum := sha256.Sum256([]byte(version + " " + platform))
	return hex.EncodeToString(sum[:])
}

func serverAt(version string) Observation {
	return Observation{
		Online: true, Server: true, Boot: 1, Version: version, Digest: digest(version, "linux/amd64")[:16],
		Phase: phaseIdle, Segments: []string{fleet.DefaultSegment},
	}
}

// addServer enrols a server, online at version A, healthy and a voter.
func (w *world) addServer(name string) {
	w.enrol(name, fleet.RoleServer, "linux/amd64", []string{fleet.DefaultSegment})
	w.seen[name], w.servers[name] = serverAt("A"), true
}

// addHost enrols an agent, online at version A. Its ID is its name.
func (w *world) addHost(name, platform string, segments ...string) {
	if len(segments) == 0 {
		segments = []string{fleet.DefaultSegment}
	}
	w.enrol(name, fleet.RoleAgent, platform, segments)
	w.seen[name] = Observation{Online: true, Boot: 1, Version: "A", Digest: digest("A", platform)[:16], Phase: phaseIdle, Segments: segments}
}

func (w *world) enrol(name string, role fleet.HostRole, platform string, segments []string) {
	w.hosts++
	os, arch, _ := strings.Cut(platform, "/")
	key := make([]byte, 32)
	key[0], key[1] = byte(w.hosts), byte(w.hosts>>8)
	w.must(fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: name, Hash: name, Role: role, Segment: segments[0], ExpiresAt: w.now.Add(time.Hour)}})
	var also []fleet.HostSegment
	for _, s := range segments[1:] {
		also = append(also, fleet.HostSegment{Segment: s, GossipAddr: "10.0.0.1:7946"})
	}
	w.must(fleet.HostEnrolled{TokenHash: name, Host: fleet.Host{ID: name, Name: name, OS: os, Arch: arch, PublicKey: key, Also: also}})
}

func (w *world) addRelease(version string, platforms ...string) {
	r := fleet.Release{Version: version, Number: uint64(len(w.state.View().Releases()) + 1)}
	for _, p := range platforms {
		os, arch, _ := strings.Cut(p, "/")
		r.Artifacts = append(r.Artifacts, fleet.Artifact{OS: os, Arch: arch, Size: 1000, SHA256: digest(version, p)})
	}
	w.must(fleet.ReleasePublished{Release: r})
}

func (w *world) startUpdate(version string, hosts ...string) {
	w.fleet = fmt.Sprintf("f%d", len(w.state.View().FleetUpdates())+1)
	start := fleet.FleetUpdateStarted{ID: w.fleet, TargetVersion: version, HostIDs: hosts}
	for _, h := range hosts {
		if _, server := w.servers[h]; server {
			w.must(fleet.FleetUpdateWithServersStarted(start))
			return
		}
	}
	w.must(start)
}

// input is what the loop would gather.
func (w *world) input() input {
	c := &coordinator{Config: Config{Log: worldLog{w}, Roster: worldLog{w}, Timeouts: DefaultTimeouts, Unreachable: w.unreachable, StageWait: w.stageWait, Self: w.leader, Servers: worldLog{w}}, memory: w.mem}
	in := c.gather(context.Background(), w.now)
	in.NewJobID = fmt.Sprintf("j%d", w.jobs+1)
	return in
}

type worldLog struct{ *world }

func (w worldLog) State() *fleet.State { return w.state }
func (w worldLog) Observations(uint64) (map[string]Observation, uint64, bool) {
	return w.seen, 1, true
}

func (w worldLog) Group(context.Context) (group []fleet.GroupMember) {
	for _, name := range slices.Sorted(maps.Keys(w.servers)) {
		group = append(group, fleet.GroupMember{ID: name, Name: name, Voter: w.servers[name], Healthy: !w.sick[name]})
	}
	return group
}

func (w worldLog) TransferLeadership(context.Context) error { panic("a plan hands nothing over") }

func (w worldLog) Changed() <-chan struct{} { return nil }
func (w worldLog) Propose(_ context.Context, _ string, _ fleet.Change) (fleet.Result, error) {
	panic("a plan proposes nothing")
}

// plan plans and carries the plan out until nothing is to be committed.
func (w *world) plan(commit bool) (out []string) {
	for range 50 {
		steps, mem, wake := plan(w.input())
		w.mem = mem
		moved := false
		for _, s := range steps {
			if s.Send {
				w.mustBeDispatched(s.JobID)
				out = append(out, "send "+s.JobID)
			}
			if s.Change != nil {
				body, err := json.Marshal(s.Change)
				if err != nil {
					w.t.Fatal(err)
				}
				out = append(out, "commit "+s.Change.Kind()+" "+string(body))
				if !commit {
					return append(out, "(not committed)")
				}
				if _, ok := s.Change.(fleet.JobDispatched); ok && s.JobID == fmt.Sprintf("j%d", w.jobs+1) {
					w.jobs++
				}
				if r := w.apply(s.Change); r.Err != nil {
					return append(out, "refused: "+r.Err.Message)
				}
				moved = true
			}
			if s.Next != "" {
				out = append(out, "tell "+s.Next+" that it is next")
			}
			if s.HandOver {
				return append(out, "hand leadership over")
			}
			if s.Say != "" {
				out = append(out, fmt.Sprintf("say %s: %s", s.JobID, s.Say))
			}
		}
		if moved {
			continue
		}
		if wake.IsZero() {
			return append(out, "wait")
		}
		return append(out, "wait "+wake.Sub(w.now).String())
	}
	return append(out, "never comes to rest")
}

// mustBeDispatched is invariant 16: no order without a committed intent.
func (w *world) mustBeDispatched(jobID string) {
	w.t.Helper()
	if j, ok := w.state.View().Job(jobID); !ok || j.Status != fleet.JobRunning || j.DispatchIndex == 0 {
		w.t.Errorf("an order is sent for %s, which is %+v", jobID, j)
	}
}

func (w *world) command(c []string) []string {
	args := c[1:]
	switch c[0] {
	case "agents":
		for _, name := range args {
			w.addHost(name, "linux/amd64")
		}
	case "servers":
		for _, name := range args {
			w.addServer(name)
		}
	case "sick", "well":
		for _, name := range args {
			w.sick[name] = c[0] == "sick"
		}
	case "standby":
		w.servers[args[0]] = false
	case "agent":
		w.addHost(args[0], args[1])
	case "in": // hosts of a segment, or relays between several
		for _, name := range args[1:] {
			w.addHost(name, "linux/amd64", strings.Split(args[0], ",")...)
		}
	case "unreachable":
		w.unreachable = UnreachablePolicy(args[0])
	case "stage-wait":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			w.t.Fatal(err)
		}
		w.stageWait = d
	case "release":
		if len(args) == 1 {
			args = append(args, "linux/amd64", "linux/arm64")
		}
		w.addRelease(args[0], args[1:]...)
	case "update":
		w.startUpdate(args[0], args[1:]...)
	case "job":
		w.jobs++
		w.must(fleet.JobCreated{JobID: fmt.Sprintf("j%d", w.jobs), HostID: args[0], TargetVersion: args[1]})
	case "withdraw":
		w.must(fleet.ReleaseWithdrawn{Version: args[0]})
	case "pause":
		w.must(fleet.FleetUpdatePaused{ID: w.fleet})
	case "resume":
		w.must(fleet.FleetUpdateResumed{ID: w.fleet})
	case "cancel":
		w.must(fleet.FleetUpdateCancelled{ID: w.fleet})
	case "remove":
		w.must(fleet.HostRemoved{HostID: args[0]})
	case "quarantine":
		w.must(fleet.HostQuarantined{HostID: args[0], Why: "two machines answer as it"})
	case "see":
		w.see(args[0], args[1:])
	case "never-seen":
		delete(w.seen, args[0])
	case "after":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(d)
		return w.plan(true)
	case "new-leader":
		w.mem = memory{since: w.now}
		if len(args) > 0 {
			w.leader = args[0]
		}
	case "plan":
		return w.plan(len(args) == 0)
	case "show":
		return w.show()
	default:
		w.t.Fatalf("no command is called %q", c[0])
	}
	return nil
}

func (w *world) see(name string, pairs []string) {
	o := w.seen[name]
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		number, _ := strconv.ParseInt(value, 10, 64)
		switch key {
		case "online":
			o.Online, o.Left, o.Unreachable, o.Unsighted = true, false, false, false
		case "offline":
			o.Online, o.Unreachable, o.Unsighted = false, false, false
		case "unsighted":
			o.Online, o.Unsighted = false, true
		case "unreachable":
			o.Online, o.Unreachable = false, true
		case "left":
			o.Online, o.Left, o.Unreachable = false, true, false
		case "just-now":
			o.Since = w.now
		case "boot":
			o.Boot = uint64(number)
		case "version":
			o.Version, o.Digest = value, w.digestFor(name, value)[:16]
		case "digest":
			o.Digest = value
		case "phase":
			o.Phase = value
		case "job":
			o.JobID = value
		case "done":
			o.Done, o.Total = number, 1000
		case "pulled":
			o.Pulled, o.Total = number, 1000
		case "holds":
			o.Holds = []string{w.digestFor(name, value)[:16]}
		case "stages", "awaits-patch", "cannot-stage":
			o.Stage = StageObservation{Digest: w.digestFor(name, value), Awaits: key == "awaits-patch", Failed: key == "cannot-stage"}
		case "staged":
			o.Stage.Done = number
		case "error":
			o.Error = value
		case "output":
			o.LastOutput = value
		case "from":
			o.Sources = nil
			for _, s := range strings.Split(value, ",") {
				if s != "" {
					o.Sources = append(o.Sources, fleet.Source{HostID: s, Name: s, Role: "agent", Bytes: 500})
				}
			}
		default:
			w.t.Fatalf("an observation has no %q", key)
		}
	}
	w.seen[name] = o
}

// digestFor is the sha256 of a version's binary for a host's platform.
func (w *world) digestFor(name, version string) string {
	h, _ := w.state.View().Host(name)
	return digest(version, h.OS+"/"+h.Arch)
}

// show tells how the newest fleet update, its alerts and the jobs stand.
func (w *world) show() (out []string) {
	v := w.state.View()
	if u, ok := v.FleetUpdate(w.fleet); ok {
		out = append(out, strings.TrimSuffix(fmt.Sprintf("fleet update to %s: %s: %s", u.TargetVersion, u.Status, u.HaltedReason), ": "))
		for _, turn := range u.Hosts.All() {
			out = append(out, strings.TrimSuffix(fmt.Sprintf("  %s: %s: %s", turn.Name, turn.Status, turn.FailedReason), ": "))
		}
	}
	for _, a := range v.OpenAlerts() {
		out = append(out, fmt.Sprintf("alert %s: %s", a.Kind, a.Message))
	}
	return out
}
