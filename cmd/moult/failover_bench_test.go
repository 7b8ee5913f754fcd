//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkFailover kills the leader of three server processes, with their logs on
// disk and default timers, with kill -9 again and again while a host's job is in
// flight. It measures from the kill to the first thing that the next coordinator does:
// the line in the job's log by which it takes the job over, which is committed.
//
// MOULT_FAILOVERS says how often (30); `make bench-failover` runs it.
func BenchmarkFailover(b *testing.B) {
	times := 30
	if text := os.Getenv("MOULT_FAILOVERS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			b.Fatalf("MOULT_FAILOVERS is %q; give a number from 1", text)
		}
		times = n
	}
	for b.Loop() {
		c := startCluster(b, 3, 1, "--agent-arg=--pull-rate=100kB", "--server-arg=--stalled=1h", "--server-arg=--rejoin=1h", "--server-arg=--no-sign=1h")
		c.publish(versionB, binary(b, versionB))
		var job struct {
			ID string `json:"job_id"`
		}
		if err := c.try(http.MethodPost, "/api/hosts/"+c.hosts()["agent-1"].ID+"/update", nil, &job); err != nil {
			b.Fatal(err)
		}
		c.awaitPhase("agent-1", "fetching")
		resume := c.suspend("agent-1") // so that its job outlasts the killing
		var took []time.Duration
		for i := range times {
			leader := c.leader()
			restart := c.killForRestart(leader)
			killed := time.Now()
			c.await(30*time.Second, "the next coordinator to act", func() error { return c.takenOver(job.ID, i+1) })
			took = append(took, time.Since(killed))
			restart()
			c.await(time.Minute, "all servers to be healthy", func() error {
				servers, err := c.client.servers(context.Background())
				for _, s := range servers {
					if !s.Healthy || !s.Voter {
						err = errors.Join(err, fmt.Errorf("%s: %v", s.Name, s.Problems))
					}
				}
				return err
			})
		}
		slices.Sort(took)
		at := func(share float64) float64 { return took[int(share*float64(len(took)-1)+0.5)].Seconds() }
		b.ReportMetric(at(0.5), "median-s")
		b.ReportMetric(at(0.99), "p99-s")
		b.ReportMetric(at(1), "worst-s")
		b.ReportMetric(float64(len(took)), "failovers")
		if worst := at(1); worst >= 3 {
			b.Errorf("the worst of %d failovers took %.2f s, want less than 3 s", len(took), worst)
		}
		resume()
		c.stop()
	}
	b.ReportMetric(0, "ns/op")
}

// suspend stops an agent and its supervisor until the returned function is called.
func (c *testCluster) suspend(name string) (resume func()) {
	c.t.Helper()
	supervisor := c.pid(name)
	pids := append(children(supervisor), supervisor)
	signal := func(s syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, s); err != nil {
				c.t.Errorf("%v to %s: %v", s, name, err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	resume = sync.OnceFunc(func() { signal(syscall.SIGCONT) })
	c.t.Cleanup(resume)
	return resume
}

// takenOver returns nil when at least n leaders have said in a job's log that they
// watch over it now.
func (c *testCluster) takenOver(jobID string, n int) error {
	lines, after := 0, uint64(0)
	for {
		var log struct {
			Lines []struct {
				Seq  uint64 `json:"seq"`
				Line string `json:"line"`
			} `json:"lines"`
		}
		if err := c.try(http.MethodGet, fmt.Sprintf("/api/jobs/%s/log?after=%d", jobID, after), nil, &log); err != nil {
			return err
		}
		for _, l := range log.Lines {
			if after = l.Seq; strings.HasPrefix(l.Line, "a new leader ") {
				lines++
			}
		}
		if len(log.Lines) == 0 {
			break
		}
	}
	if lines < n {
		return fmt.Errorf("%d of %d", lines, n)
	}
	return nil
}
