//go:build linux

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The benchmark of a whole fleet update: real agents and a real server, each in a
// network namespace behind a link that is shaped in both directions, and ansible in
// the same namespaces. docs/rollout-time.md tells what is measured, and how.
const (
	rolloutSegment = "default" // which servers are in
	rolloutHosts   = 8
	rolloutSizes   = 6 // the large binary's length over the small one's, as of 60 MB over 10
	rolloutRounds  = 5 // of each size, as the time that a host takes to leave varies
	defaultSoak    = 5 * time.Second

	minOverAnsible  = 3.0
	maxSizeRatio    = 1.1 // of a turn with the large binary over one with the small
	maxOverRestarts = 1.2 // of the whole over hosts × (restart + rejoin + soak)
)

// turnTime is where the time of one host's turn went, in seconds.
type turnTime struct {
	Host    string  `json:"host"`
	Staged  bool    `json:"staged"`          // before its turn
	Prepare float64 `json:"prepare_seconds"` // the order, what is fetched yet, preflight
	Leave   float64 `json:"leave_seconds"`   // until the old agent has left the mesh and ended
	Start   float64 `json:"start_seconds"`   // until the new one is up
	Join    float64 `json:"join_seconds"`    // until a peer has answered it
	Soak    float64 `json:"soak_seconds"`
	Commit  float64 `json:"commit_seconds"`
	Verdict float64 `json:"verdict_seconds"` // until the leader has it in its log
	Whole   float64 `json:"whole_seconds"`
}

// restart is restart + rejoin.
func (t turnTime) restart() float64 { return t.Leave + t.Start + t.Join }

// fleetRollout is one fleet update, or one run of ansible.
type fleetRollout struct {
	By           string     `json:"by"`
	Mbit         int        `json:"mbit"`
	Bytes        int64      `json:"bytes"`
	Soak         float64    `json:"soak_seconds"`
	Total        float64    `json:"total_seconds"`
	OverRestarts float64    `json:"over_restarts,omitempty"` // Total over hosts × (restart + rejoin + soak)
	AnsibleOver  float64    `json:"ansible_over,omitempty"`  // ansible's Total over this
	Turns        []turnTime `json:"turns,omitempty"`
}

const (
	byWhole  = "moult, whole binary"
	byPatch  = "moult, as a patch"
	byStaged = "moult, staged before"
)

// TestBenchRollout updates 8 hosts by moult and by ansible, and prints where the time
// went: make bench-rollout.
func TestBenchRollout(t *testing.T) {
	path := os.Getenv("MOULT_BENCH_ROLLOUT")
	if path == "" {
		t.Skip("minutes; make bench-rollout runs it")
	}
	for tool, pkg := range map[string]string{"ansible-playbook": "ansible", "sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "runsv": "runit", "tc": "iproute2"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v; install the package %s", err, pkg)
		}
	}
	var runs []fleetRollout
	for _, mbit := range []int{20, 100} {
		t.Run(fmt.Sprintf("%dMbit", mbit), func(t *testing.T) { runs = append(runs, benchFleetUpdates(t, mbit)...) })
	}
	t.Run("staged", func(t *testing.T) { runs = append(runs, benchStaged(t, 100)...) })
	fmt.Print(rolloutTable(runs), "\n", turnTable(runs))
	text, err := json.MarshalIndent(runs, "", "  ")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, append(text, '\n'), 0o644))
	for _, miss := range missedGoals(runs) {
		t.Log("missed: " + miss)
	}
}

// missedGoals tells what of moult's runs is not as it should be.
func missedGoals(runs []fleetRollout) (missed []string) {
	for _, r := range runs {
		if r.AnsibleOver > 0 && r.Soak == 0 && r.AnsibleOver < minOverAnsible {
			missed = append(missed, fmt.Sprintf("%s at %d Mbit/s is %.1f × faster than ansible, the goal is %g ×", r.By, r.Mbit, r.AnsibleOver, minOverAnsible))
		}
	}
	for kind, over := range overRestarts(runs) {
		if over > maxOverRestarts {
			missed = append(missed, fmt.Sprintf("the whole with %.1f MB and a soak of %.0f s is %.2f × the restarts, the goal is %g ×", float64(kind.bytes)/1e6, kind.soak, over, maxOverRestarts))
		}
	}
	for _, soak := range []time.Duration{0, defaultSoak} {
		if ratio := sizeRatio(runs, soak); ratio > maxSizeRatio {
			missed = append(missed, fmt.Sprintf("with a soak of %v a turn with the large binary takes %.2f × as long, the goal is %g ×", soak, ratio, maxSizeRatio))
		}
	}
	return missed
}

// rolloutKind is what the rounds of a staged fleet update have in common.
type rolloutKind struct {
	bytes int64
	soak  float64
}

// overRestarts is the median over the rounds of each kind.
func overRestarts(runs []fleetRollout) map[rolloutKind]float64 {
	rounds := map[rolloutKind][]fleetRollout{}
	for _, r := range runs {
		if r.By == byStaged {
			kind := rolloutKind{r.Bytes, r.Soak}
			rounds[kind] = append(rounds[kind], r)
		}
	}
	medians := map[rolloutKind]float64{}
	for kind, of := range rounds {
		medians[kind] = medianOf(of, func(r fleetRollout) float64 { return r.OverRestarts })
	}
	return medians
}

// sizeRatio is a staged turn with the large binary over one with the small; 0 where
// that was not measured.
func sizeRatio(runs []fleetRollout, soak time.Duration) float64 {
	bySize := map[int64][]turnTime{}
	for _, r := range runs {
		if r.By == byStaged && r.Soak == soak.Seconds() {
			bySize[r.Bytes] = append(bySize[r.Bytes], r.Turns...)
		}
	}
	if len(bySize) < 2 {
		return 0
	}
	sizes := slices.Sorted(maps.Keys(bySize))
	whole := func(t turnTime) float64 { return t.Whole }
	return medianOf(bySize[sizes[len(sizes)-1]], whole) / medianOf(bySize[sizes[0]], whole)
}

// benchFleetUpdates has moult update the fleet in three ways, then ansible.
func benchFleetUpdates(t *testing.T, mbit int) []fleetRollout {
	f := startRolloutFleet(t, mbit, binary(t, versionA), versionA)
	newer := map[string]string{versionB: binary(t, versionB)}
	for _, v := range []string{"3.0.0", "4.0.0"} {
		newer[v] = buildVersion(t, v)
	}
	f.publish(versionB, newer[versionB])
	whole := f.update(byWhole, versionB, 0)
	f.publish("3.0.0", newer["3.0.0"])
	f.awaitPatch()
	patched := f.update(byPatch, "3.0.0", 0)
	f.begin(binary(t, versionA), versionA, defaultSoak)
	f.publish("4.0.0", newer["4.0.0"])
	soaked := f.update(byWhole, "4.0.0", defaultSoak)
	for _, h := range f.agents {
		h.stop()
	}
	other := f.ansible(newer["4.0.0"], "4.0.0")
	runs := []fleetRollout{whole, patched, soaked}
	for i := range runs {
		runs[i].AnsibleOver = other.Total / runs[i].Total
	}
	return append(runs, other)
}

// benchStaged has hosts that have staged a binary update to it: small and large ones,
// without a soak and with the default.
func benchStaged(t *testing.T, mbit int) (runs []fleetRollout) {
	f := startRolloutFleet(t, mbit, buildGreeter(t, versionA, "hello"), versionA)
	small := int64(0)
	stage := func(version string, large bool, soak time.Duration) {
		path := buildGreeter(t, version, "hello")
		if large {
			pad(t, path, rolloutSizes*small)
		}
		f.publish(version, path)
		f.moult("release", "stage", version, "--wait")
		unix.Sync() // all hosts share a disk here, which has what each of them has staged to write
		r := f.update(byStaged, version, soak)
		for _, turn := range r.Turns {
			if !turn.Staged {
				t.Errorf("%s did not find %s staged at its turn", turn.Host, version)
			}
		}
		if !large {
			small = r.Bytes
		}
		runs = append(runs, r)
	}
	for round := range rolloutRounds {
		stage(fmt.Sprintf("2.%d.0", round), false, 0)
		stage(fmt.Sprintf("2.%d.1", round), true, 0)
	}
	f.begin(buildGreeter(t, "3.0.0", "hello"), "3.0.0", defaultSoak)
	stage("4.0.0", false, defaultSoak)
	stage("4.0.1", true, defaultSoak)
	return runs
}

// pad makes a program longer, by what no compression makes shorter: what follows an
// ELF file's last section is nobody's.
func pad(t testing.TB, path string, length int64) {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	filling := make([]byte, length-st.Size())
	_, err = rand.Read(filling)
	must(t, err)
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = file.Write(filling)
	must(t, errors.Join(err, file.Close()))
}

// rolloutFleet is a server and agents behind shaped links.
type rolloutFleet struct {
	*segmentedNet
	server *segmentedHost
	agents []*segmentedHost
}

// startRolloutFleet starts it with agents that run a program, moult's or one of its own,
// and no soak.
func startRolloutFleet(t *testing.T, mbit int, program, version string) *rolloutFleet {
	t.Helper()
	f := &rolloutFleet{segmentedNet: makeSegmentedNet(t, rolloutSegment)}
	f.mbit = mbit
	f.startServers(1)
	f.server = f.hosts["server-1"]
	for i := range rolloutHosts {
		f.agents = append(f.agents, f.host(fmt.Sprintf("agent-%d", i+1), rolloutSegment))
	}
	f.begin(program, version, 0)
	return f
}

// begin stops the agents, installs a program and starts them on it.
func (f *rolloutFleet) begin(program, version string, soak time.Duration) {
	f.t.Helper()
	var stops sync.WaitGroup
	for _, h := range f.agents {
		stops.Go(h.stop)
	}
	stops.Wait()
	var names []string
	for _, h := range f.agents {
		names = append(names, h.name)
		dir := filepath.Join(f.dir, h.name)
		must(f.t, os.MkdirAll(dir, 0o700))
		must(f.t, copyExecutable(program, filepath.Join(dir, "moult")))
		args := []string{
			"--data", filepath.Join(dir, "data"), "--name", h.name, "--gossip", h.addr(rolloutSegment) + ":" + gossipPort,
			"--peer", h.port(rolloutSegment), "--join", f.server.port(rolloutSegment), "--soak", soak.String(),
		}
		if _, err := os.Stat(filepath.Join(dir, "join.token")); errors.Is(err, fs.ErrNotExist) {
			f.token(h, "agent", rolloutSegment)
		}
		args = append(args, "--token-file", filepath.Join(dir, "join.token"))
		if out, err := exec.Command(program, "agent", "--help").Output(); err == nil && bytes.Contains(out, []byte("--token-file")) {
			args = append([]string{"agent"}, args...)
		}
		h.start(args...)
	}
	f.awaitOnline(time.Minute, names...)
	f.await(time.Minute, "all hosts to show "+version, func() error {
		for name, h := range f.testCluster.hosts() {
			if h.AgentVersion != version || h.Phase != "idle" {
				return fmt.Errorf("%s shows %s, %s", name, h.AgentVersion, h.Phase)
			}
		}
		return nil
	})
}

// update updates the fleet and tells where the time went.
func (f *rolloutFleet) update(by, version string, soak time.Duration) fleetRollout {
	f.t.Helper()
	begin := time.Now()
	id := strings.TrimSpace(f.moult("fleet", "update", "--yes", "--to", version))
	u := f.awaitFleetUpdate(id, "completed", 10*time.Minute)
	r := fleetRollout{By: by, Mbit: f.mbit, Soak: soak.Seconds(), Total: time.Since(begin).Seconds()}
	st, err := os.Stat(f.published[version])
	must(f.t, err)
	r.Bytes = st.Size()
	for _, turn := range u.Hosts {
		if turn.Status != "succeeded" {
			f.t.Fatalf("%s: %s %s", turn.Name, turn.Status, turn.FailedReason)
		}
		r.Turns = append(r.Turns, f.turnTime(turn, soak))
	}
	restarts := medianOf(r.Turns, turnTime.restart) + soak.Seconds()
	r.OverRestarts = r.Total / (float64(len(r.Turns)) * restarts)
	return r
}

// turnTime takes a turn apart, by the job's record and log and by the supervisor's
// own log: all clocks are this machine's.
func (f *rolloutFleet) turnTime(turn apiTurn, soak time.Duration) turnTime {
	f.t.Helper()
	var j apiJob
	f.get("/api/jobs/"+turn.JobID, &j)
	if j.StartedAt == nil || j.FinishedAt == nil {
		f.t.Fatalf("job without times: %+v", j)
	}
	var log struct{ Lines []apiLogLine }
	f.await(10*time.Second, "the job's log to be complete", func() error {
		f.get("/api/jobs/"+turn.JobID+"/log", &log)
		for _, l := range log.Lines {
			if strings.HasPrefix(l.Line, "committed: ") {
				return nil
			}
		}
		return errors.New("no word of the commit")
	})
	said := map[string]time.Time{}
	for _, l := range log.Lines {
		for _, text := range []string{"restarting on trial", "runs on trial", "committed: "} {
			if strings.Contains(l.Line, text) {
				said[text] = l.At
			}
		}
	}
	restarting, up, committed := said["restarting on trial"], said["runs on trial"], said["committed: "]
	if restarting.IsZero() {
		f.t.Fatalf("the log of %s says nothing of a restart: %+v", turn.Name, log.Lines)
	}
	left, joined := f.supervisorSays(turn.Name, `msg="trial begins"`, turn.JobID), f.supervisorSays(turn.Name, `msg="trial joined the mesh"`, turn.JobID)
	if up.IsZero() || joined.Before(up) {
		up = joined // the job's log is the last to know, and without a soak it may be too late for it
	}
	t := turnTime{
		Host: turn.Name, Prepare: restarting.Sub(*j.StartedAt).Seconds(), Leave: left.Sub(restarting).Seconds(), Start: up.Sub(left).Seconds(), Join: joined.Sub(up).Seconds(),
		Soak: soak.Seconds(), Commit: committed.Sub(joined.Add(soak)).Seconds(), Verdict: j.FinishedAt.Sub(committed).Seconds(), Whole: j.FinishedAt.Sub(*j.StartedAt).Seconds(),
	}
	for _, l := range log.Lines {
		t.Staged = t.Staged || strings.HasPrefix(l.Line, "staged ahead of this job")
	}
	return t
}

// supervisorSays returns when a supervisor logged something about a job.
func (f *rolloutFleet) supervisorSays(host, what, job string) (at time.Time) {
	f.t.Helper()
	f.await(10*time.Second, host+" to log "+what, func() error {
		for line := range strings.SplitSeq(f.read(host+"/log"), "\n") {
			if !strings.Contains(line, what) || !strings.Contains(line, "job="+job) {
				continue
			}
			text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			var err error
			at, err = time.Parse(time.RFC3339, text)
			return err
		}
		return errors.New("it does not")
	})
	return at
}

// awaitPatch waits until the leader has made a patch.
func (f *rolloutFleet) awaitPatch() {
	f.t.Helper()
	f.await(2*time.Minute, "the leader to have made a patch", func() error {
		made, err := filepath.Glob(filepath.Join(f.dir, "server-1", "data", "patches", "*-*"))
		if err == nil && len(made) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
}

func medianOf[T any](them []T, of func(T) float64) float64 {
	var all []float64
	for _, one := range them {
		all = append(all, of(one))
	}
	slices.Sort(all)
	if len(all) == 0 {
		return 0
	}
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

func rolloutTable(runs []fleetRollout) string {
	var b strings.Builder
	b.WriteString("| link | by | binary | soak | total | hosts × (restart + rejoin + soak) | total over that | ansible takes |\n|---|---|---|---|---|---|---|---|\n")
	for _, r := range runs {
		fmt.Fprintf(&b, "| %d Mbit/s | %s | %.1f MB | %.0f s | %.1f s |", r.Mbit, r.By, float64(r.Bytes)/1e6, r.Soak, r.Total)
		if r.OverRestarts > 0 {
			fmt.Fprintf(&b, " %.1f s | %.2f × |", r.Total/r.OverRestarts, r.OverRestarts)
		} else {
			b.WriteString(" | |")
		}
		if r.AnsibleOver > 0 {
			fmt.Fprintf(&b, " %.1f × as long", r.AnsibleOver)
		}
		b.WriteString(" |\n")
	}
	return b.String()
}

func turnTable(runs []fleetRollout) string {
	columns := []struct {
		name string
		of   func(turnTime) float64
	}{
		{"prepare", func(t turnTime) float64 { return t.Prepare }},
		{"leave", func(t turnTime) float64 { return t.Leave }},
		{"start", func(t turnTime) float64 { return t.Start }},
		{"join", func(t turnTime) float64 { return t.Join }},
		{"soak", func(t turnTime) float64 { return t.Soak }},
		{"commit", func(t turnTime) float64 { return t.Commit }},
		{"verdict", func(t turnTime) float64 { return t.Verdict }},
		{"whole turn", func(t turnTime) float64 { return t.Whole }},
	}
	var b strings.Builder
	b.WriteString("| median of the turns of | link | binary | staged |")
	for _, c := range columns {
		b.WriteString(" " + c.name + " |")
	}
	b.WriteString("\n|---|---|---|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, r := range runs {
		if len(r.Turns) == 0 {
			continue
		}
		staged := 0
		for _, t := range r.Turns {
			if t.Staged {
				staged++
			}
		}
		fmt.Fprintf(&b, "| %s | %d Mbit/s | %.1f MB | %d of %d |", r.By, r.Mbit, float64(r.Bytes)/1e6, staged, len(r.Turns))
		for _, c := range columns {
			fmt.Fprintf(&b, " %.0f ms |", 1000*medianOf(r.Turns, c.of))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for _, soak := range []time.Duration{0, defaultSoak} {
		if ratio := sizeRatio(runs, soak); ratio > 0 {
			fmt.Fprintf(&b, "A staged turn with the large binary over one with the small, soak %v: %.2f ×\n", soak, ratio)
		}
	}
	return b.String()
}
