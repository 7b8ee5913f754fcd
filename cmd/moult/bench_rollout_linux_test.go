//go:build linux

package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
)

// The benchmark of a whole fleet update: real agents and a real server, each in a
// network namespace behind a link that is shaped in both directions, and ansible in
// the same namespaces. docs/rollout-time.md tells what is measured, and how.
const (
	rolloutSegment = "default" // which servers are in
	rolloutHosts   = 8
	rolloutSizes   = 6 // the large binary's length over the small one's, as of 60 MB over 10
	rolloutRounds  = 2 // of each size
	defaultSoak    = 5 * time.Second

	minOverAnsible  = 3.0
	maxSizeRatio    = 1.1 // of a turn with the large binary over one with the small
	maxOverRestarts = 1.2 // of the whole over hosts × (restart + rejoin + soak)
)

// turnTime is where the time of one host's turn went, in seconds.
type turnTime struct {
	Host    string  `json:"host"`
	Staged  bool    `json:"staged"` // before its turn
	Prepare float64 `json:"prepare_seconds"`
	Restart float64 `json:"restart_seconds"`
	Rejoin  float64 `json:"rejoin_seconds"`
	Soak    float64 `json:"soak_seconds"`
	Commit  float64 `json:"commit_seconds"`
	Verdict float64 `json:"verdict_seconds"`
	Whole   float64 `json:"whole_seconds"`
}

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

// sizedTurns are turns of hosts that had staged a binary of a size.
type sizedTurns struct {
	Bytes  int64      `json:"bytes"`
	Median float64    `json:"median_turn_seconds"`
	Turns  []turnTime `json:"turns"`
}

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
	var report struct {
		Rollouts []fleetRollout `json:"rollouts"`
		Sizes    []sizedTurns   `json:"turns_by_size"`
	}
	for _, mbit := range []int{20, 100} {
		t.Run(fmt.Sprintf("%dMbit", mbit), func(t *testing.T) {
			report.Rollouts = append(report.Rollouts, benchFleetUpdates(t, mbit)...)
		})
	}
	t.Run("sizes", func(t *testing.T) { report.Sizes = benchTurnSizes(t, 100) })
	fmt.Print(rolloutTable(report.Rollouts), "\n", turnTable(report.Rollouts, report.Sizes))
	text, err := json.MarshalIndent(report, "", "  ")
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, append(text, '\n'), 0o644))
	for _, r := range report.Rollouts {
		if r.AnsibleOver > 0 && r.Soak == 0 && r.AnsibleOver < minOverAnsible {
			t.Logf("missed: %s at %d Mbit/s is %.1f × faster than ansible, the goal is %g ×", r.By, r.Mbit, r.AnsibleOver, minOverAnsible)
		}
	}
	if n := len(report.Sizes); n == 2 && report.Sizes[1].Median > maxSizeRatio*report.Sizes[0].Median {
		t.Logf("missed: a turn with the large binary takes %.2f × as long, the goal is %g ×", report.Sizes[1].Median/report.Sizes[0].Median, maxSizeRatio)
	}
}

// benchFleetUpdates has moult update the fleet in three ways, then ansible.
func benchFleetUpdates(t *testing.T, mbit int) []fleetRollout {
	f := startRolloutFleet(t, mbit, binary(t, versionA), versionA)
	newer := map[string]string{versionB: binary(t, versionB)}
	for _, v := range []string{"3.0.0", "4.0.0"} {
		newer[v] = buildVersion(t, v)
	}
	f.publish(versionB, newer[versionB])
	whole := f.update("moult, whole binary", versionB, 0)
	f.publish("3.0.0", newer["3.0.0"])
	f.awaitPatch()
	patched := f.update("moult, as a patch", "3.0.0", 0)
	f.begin(binary(t, versionA), versionA, defaultSoak)
	f.publish("4.0.0", newer["4.0.0"])
	soaked := f.update("moult, whole binary", "4.0.0", defaultSoak)
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

// benchTurnSizes has hosts that have staged a small and a large binary update to it.
func benchTurnSizes(t *testing.T, mbit int) []sizedTurns {
	f := startRolloutFleet(t, mbit, buildGreeter(t, versionA, "hello"), versionA)
	sizes := make([]sizedTurns, 2)
	for round := range rolloutRounds {
		for i := range sizes {
			version := fmt.Sprintf("2.%d.%d", round, i)
			path := buildGreeter(t, version, "hello")
			if i == 1 {
				pad(t, path, rolloutSizes*sizes[0].Bytes)
			}
			f.publish(version, path)
			f.moult("release", "stage", version)
			f.awaitStaged(path)
			r := f.update("", version, 0)
			for _, turn := range r.Turns {
				if !turn.Staged {
					t.Errorf("%s did not find %s staged at its turn", turn.Host, version)
				}
			}
			sizes[i].Bytes, sizes[i].Turns = r.Bytes, append(sizes[i].Turns, r.Turns...)
		}
	}
	for i := range sizes {
		sizes[i].Median = medianOf(sizes[i].Turns, func(t turnTime) float64 { return t.Whole })
	}
	return sizes
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
	restarts := medianOf(r.Turns, func(t turnTime) float64 { return t.Restart + t.Rejoin }) + soak.Seconds()
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
	at := func(text string) time.Time {
		for _, l := range log.Lines {
			if strings.Contains(l.Line, text) {
				return l.At
			}
		}
		f.t.Fatalf("the log of %s says nothing of %q: %+v", turn.Name, text, log.Lines)
		return time.Time{}
	}
	restarting, up, committed := at("restarting on trial"), at("runs on trial"), at("committed: ")
	joined := f.supervisorSays(turn.Name, `msg="trial joined the mesh"`, turn.JobID)
	t := turnTime{
		Host: turn.Name, Prepare: restarting.Sub(*j.StartedAt).Seconds(), Restart: up.Sub(restarting).Seconds(), Rejoin: joined.Sub(up).Seconds(),
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

// awaitStaged waits until all agents have verified a binary.
func (f *rolloutFleet) awaitStaged(path string) {
	f.t.Helper()
	digest, err := nodekit.FileDigest(path)
	must(f.t, err)
	f.await(5*time.Minute, "all hosts to have staged", func() error {
		for _, h := range f.agents {
			if _, err := os.Stat(filepath.Join(f.dir, h.name, "data", "artifacts", digest)); err != nil {
				return err
			}
		}
		return nil
	})
}

func medianOf(turns []turnTime, of func(turnTime) float64) float64 {
	var all []float64
	for _, t := range turns {
		all = append(all, of(t))
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
		if r.AnsibleOver == 0 {
			b.WriteString(" | | |\n")
			continue
		}
		fmt.Fprintf(&b, " %.1f s | %.2f × | %.1f × |\n", r.Total/r.OverRestarts, r.OverRestarts, r.AnsibleOver)
	}
	return b.String()
}

func turnTable(runs []fleetRollout, sizes []sizedTurns) string {
	var b strings.Builder
	b.WriteString("| a turn of | staged | prepare | restart | rejoin | soak | commit | verdict | whole |\n|---|---|---|---|---|---|---|---|---|\n")
	line := func(name string, turns []turnTime) {
		staged := 0
		for _, t := range turns {
			if t.Staged {
				staged++
			}
		}
		fmt.Fprintf(&b, "| %s | %d of %d |", name, staged, len(turns))
		for _, of := range []func(turnTime) float64{
			func(t turnTime) float64 { return t.Prepare }, func(t turnTime) float64 { return t.Restart }, func(t turnTime) float64 { return t.Rejoin },
			func(t turnTime) float64 { return t.Soak }, func(t turnTime) float64 { return t.Commit }, func(t turnTime) float64 { return t.Verdict },
			func(t turnTime) float64 { return t.Whole },
		} {
			fmt.Fprintf(&b, " %.0f ms |", 1000*medianOf(turns, of))
		}
		b.WriteString("\n")
	}
	for _, r := range runs {
		if len(r.Turns) > 0 {
			line(fmt.Sprintf("%s, %d Mbit/s, soak %.0f s", r.By, r.Mbit, r.Soak), r.Turns)
		}
	}
	for _, s := range sizes {
		line(fmt.Sprintf("%.1f MB, staged before", float64(s.Bytes)/1e6), s.Turns)
	}
	if len(sizes) == 2 {
		fmt.Fprintf(&b, "\nA turn with the large binary takes %.2f × one with the small.\n", sizes[1].Median/cmp.Or(sizes[0].Median, 1))
	}
	return b.String()
}
