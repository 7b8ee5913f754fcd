//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/testdata/faultsuite"
)

// The steps of a host's turn, as they show from outside: in what the servers say
// and on the host's disk. Each is looked for every millisecond or two, so what
// follows it follows at once. The steps within the leader, which do not show, are
// package consensus's: TestLeaderChangeAtEachStepOfADispatch.

// dispatchStep is one. A step that was reached and went by still counts as reached.
type dispatchStep struct {
	name    string
	reached func(w *turnWatch) bool
}

var dispatchSteps = []dispatchStep{
	{"the turn is next", func(w *turnWatch) bool { return w.position == 1 || w.turn(w.position-1).Status == "succeeded" }},
	{"the dispatch is committed", func(w *turnWatch) bool { return w.turn(w.position).JobID != "" }},
	{"the host has accepted the order", func(w *turnWatch) bool { return w.fileHas("data/fence.json", w.job()) }},
	{"the host has the job on record", func(w *turnWatch) bool { return w.fileHas("data/last-job.json", w.job()) }},
	{"bytes have come", func(w *turnWatch) bool { return w.exists("data/artifacts/unverified-"+w.digest) || w.fetched() }},
	{"all bytes are fetched and verified", (*turnWatch).fetched},
	{"the trial is marked", func(w *turnWatch) bool { return w.exists("data/trial.json") || w.up() }},
	{"the new binary runs on trial", (*turnWatch).up},
	{"the host is seen in the new version", func(w *turnWatch) bool { return w.host().AgentVersion == w.version }},
	{"the new binary is installed", (*turnWatch).installed},
	{"the verdict is committed", func(w *turnWatch) bool { return w.turn(w.position).Status == "succeeded" }},
}

// stepCycles is how often the leader goes at each step.
const stepCycles = 20

// turnWatch looks at one host's turn in a fleet update.
type turnWatch struct {
	f               *faultRun
	update, name    string
	position        int
	version, digest string
	known           string // the job, once it is
}

// turn is a turn as some server shows it; the zero one when none answers in time.
func (w *turnWatch) turn(position int) apiTurn {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var u apiFleetUpdate
	if err := w.f.c.client.call(ctx, http.MethodGet, "/api/fleet-updates/"+w.update, nil, &u); err != nil {
		return apiTurn{}
	}
	return u.Hosts[position-1]
}

func (w *turnWatch) job() string {
	if w.known == "" {
		w.known = w.turn(w.position).JobID
	}
	return w.known
}

func (w *turnWatch) host() apiHost {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	hosts, err := w.f.c.client.hosts(ctx, "")
	if err != nil {
		return apiHost{}
	}
	for _, h := range hosts {
		if h.Name == w.name {
			return h
		}
	}
	return apiHost{}
}

func (w *turnWatch) path(name string) string { return filepath.Join(w.f.c.dir, w.name, name) }

func (w *turnWatch) exists(name string) bool {
	_, err := os.Stat(w.path(name))
	return err == nil
}

func (w *turnWatch) fileHas(name, text string) bool {
	content, err := os.ReadFile(w.path(name))
	return err == nil && text != "" && bytes.Contains(content, []byte(text))
}

func (w *turnWatch) fetched() bool { return w.exists("data/artifacts/" + w.digest) }

// up tells whether the host's log says that it runs in the new version.
func (w *turnWatch) up() bool { return w.f.c.starts(w.name, w.version) > 0 }

func (w *turnWatch) installed() bool {
	digest, err := nodekit.FileDigest(w.path("moult"))
	return err == nil && digest == w.digest
}

// changeLeader takes the leadership from whoever has it as soon as a turn has come to
// a step: by kill -9, or by handing it over, in turn.
func (f *faultRun) changeLeader() {
	f.gapLimit = failoverLimit
	n := f.count.Cycles
	step := dispatchSteps[n%len(dispatchSteps)]
	if f.short() {
		step = dispatchSteps[[]int{1, 6}[n%2]]
	}
	u := f.c.fleetUpdate(f.update)
	w := &turnWatch{f: f, update: f.update, position: 1 + f.rng.IntN(len(u.Hosts)), version: u.TargetVersion, digest: f.digest}
	w.name = u.Hosts[w.position-1].Name
	leader := f.c.leader()
	transfer := n/len(dispatchSteps)%2 == 1
	for deadline := time.Now().Add(cyclePatience); !step.reached(w); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("gave up waiting for %s, turn %d: %+v", step.name, w.position, f.c.fleetUpdate(f.update))
		}
	}
	f.noteMoment(step.name)
	if transfer {
		f.c.await(failoverLimit, "the leader to hand over", func() error {
			err := f.c.try(http.MethodPost, "/api/servers/transfer-leadership", nil, nil)
			if f.leaderNow() != leader {
				return nil // by this or by itself
			}
			return errors.Join(err, fmt.Errorf("%s leads still", leader))
		})
		return
	}
	restart := f.c.killForRestart(leader)
	time.Sleep(time.Duration(f.rng.Int64N(int64(2 * time.Second))))
	restart()
}

func (f *faultRun) leaderNow() string {
	servers, err := f.c.client.servers(context.Background())
	if err != nil {
		return ""
	}
	for _, s := range servers {
		if s.Leader {
			return s.Name
		}
	}
	return ""
}

// short tells whether the run is so short that the faults that matter most come first.
func (f *faultRun) short() bool { return !faultsuite.Long() && os.Getenv("MOULT_FAULTS_CYCLES") == "" }

// noteMoment counts what the cycle's fault met.
func (f *faultRun) noteMoment(moment string) {
	if f.moments == nil {
		f.moments = map[string]int{}
	}
	f.moments[moment]++
}
