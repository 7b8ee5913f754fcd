package coordinator

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// instant is a site whose log takes a fixed time to commit and whose orders are
// only told to the benchmark.
type instant struct {
	*site
	commit time.Duration
	orders chan fleet.Job
}

func (s instant) Propose(ctx context.Context, actor string, c fleet.Change) (fleet.Result, error) {
	if s.commit > 0 {
		<-time.After(s.commit)
	}
	return s.site.Propose(ctx, actor, c)
}

func (s instant) Send(_ context.Context, j fleet.Job, _ fleet.Release, _ fleet.Host) error {
	s.orders <- j
	return nil
}

func (instant) Next(context.Context, fleet.Release, fleet.Host) error { return nil }

// BenchmarkTurnaround measures from a host's success being visible to the next
// host's order being sent, in a fleet of 200, with free commits and with commits
// of 10 ms (two lie between them: the verdict and the next dispatch).
func BenchmarkTurnaround(b *testing.B) {
	for _, commit := range []time.Duration{0, 10 * time.Millisecond} {
		b.Run(fmt.Sprintf("commit=%v", commit), func(b *testing.B) { benchmarkTurnaround(b, commit) })
	}
}

func benchmarkTurnaround(b *testing.B, commit time.Duration) {
	const hosts = 200
	s := instant{newSite(b, hosts), commit, make(chan fleet.Job, 1)}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Config{Log: s, Roster: s, Orders: s, Timeouts: DefaultTimeouts, Logger: slog.New(slog.DiscardHandler)})
	}()
	defer func() {
		cancel()
		<-ended
	}()
	var left int
	var worst time.Duration
	var job fleet.Job
	for b.Loop() {
		if left == 0 {
			b.StopTimer()
			left = hosts
			job = s.again(b)
			b.StartTimer()
		}
		b.StopTimer()
		s.await(b, "the coordinator is at rest", func() bool { return len(s.state.View().JobLog(job.ID, 0, 1)) == 1 })
		b.StartTimer()
		start := time.Now()
		s.observe(job.HostID, func(o *Observation) {
			o.JobID, o.Phase, o.Version, o.Boot, o.Digest = job.ID, phaseIdle, "B", o.Boot+1, digest("B", "linux/amd64")[:16]
		})
		if left--; left == 0 {
			continue
		}
		job = <-s.orders
		worst = max(worst, time.Since(start))
	}
	b.ReportMetric(float64(worst.Microseconds())/1000, "worst-ms")
}

// again puts all hosts back and starts another fleet update.
func (s instant) again(b *testing.B) fleet.Job {
	s.await(b, "the fleet update before has ended", func() bool {
		_, active := s.state.View().ActiveFleetUpdate()
		return !active
	})
	var names []string
	for i := range len(s.agents) {
		name := fmt.Sprintf("agent-%d", i+1)
		names = append(names, name)
		s.observe(name, func(o *Observation) { o.Version, o.Digest, o.JobID = "A", digest("A", "linux/amd64")[:16], "" })
	}
	s.mu.Lock()
	s.startUpdate("B", names...)
	s.mu.Unlock()
	return <-s.orders
}

func (s instant) await(b *testing.B, what string, holds func() bool) {
	deadline := time.After(time.Minute)
	for !holds() {
		select {
		case <-time.After(time.Millisecond):
		case <-deadline:
			b.Fatalf("not so within a minute: %s", what)
		}
	}
}
