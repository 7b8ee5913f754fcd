package telemetry

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"moult/consensus/fleet"
)

// Jobs counts jobs as they end: how long they ran, and the bytes that agents
// fetched for them. Agents have no port for metrics; what they fetched, and from
// whom, comes with the verdict of each job. It is a prometheus.Collector.
type Jobs struct {
	group
	seconds *prometheus.HistogramVec
	fetched *prometheus.CounterVec

	// Owned by Run.
	view  func() fleet.View
	since time.Time       // jobs that ended before are of an earlier process
	open  map[string]bool // ids of the jobs that had not ended at the last look
	// The jobs that were counted last: an event may name one that a look at a
	// newer view has counted before.
	counted [maxCounted]string
	next    int // in counted
}

// maxCounted is more than the events that wait for a subscriber.
const maxCounted = 256

// jobSeconds are the buckets of jobs: an update takes some seconds, and one that
// fails takes up to the time limits of its phases.
var jobSeconds = []float64{1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800}

// sourceRoles are who may serve an artifact.
var sourceRoles = []fleet.HostRole{fleet.RoleAgent, fleet.RoleServer}

// NewJobs returns the collector; now is the time by which jobs are told from
// those of an earlier process.
func NewJobs(view func() fleet.View, now time.Time) *Jobs {
	j := &Jobs{
		view: view, since: now, open: map[string]bool{},
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "moult_job_seconds", Help: "How long jobs ran, from their dispatch to the verdict, by how they ended.", Buckets: jobSeconds,
		}, []string{"status"}),
		fetched: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "moult_job_fetched_bytes_total", Help: "Bytes that agents fetched in jobs that have ended, by the role of the host that served them.",
		}, []string{"source"}),
	}
	for _, status := range []fleet.JobStatus{fleet.JobSucceeded, fleet.JobFailed} {
		j.seconds.WithLabelValues(string(status))
	}
	for _, role := range sourceRoles {
		j.fetched.WithLabelValues(string(role))
	}
	j.group = group{j.seconds, j.fetched}
	return j
}

// Run follows the state until ctx ends. It needs every event: a job that begins
// and ends among events that were folded into "*" is not counted.
func (j *Jobs) Run(ctx context.Context, events <-chan fleet.Event) {
	j.look(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			j.follow(e)
		}
	}
}

func (j *Jobs) follow(e fleet.Event) {
	var named []string
	for _, topic := range e.Topics {
		if id, isJob := strings.CutPrefix(topic, "job:"); isJob {
			named = append(named, id)
		}
	}
	if len(named) > 0 || slices.Contains(e.Topics, "*") {
		j.look(named)
	}
}

// look counts the jobs that have ended since the last look: those that were open
// then, and those that an event names.
func (j *Jobs) look(named []string) {
	v := j.view()
	open := map[string]bool{}
	for _, job := range v.OpenJobs() {
		open[job.ID] = true
	}
	for _, id := range named {
		j.open[id] = true
	}
	for id := range j.open {
		if job, exists := v.Job(id); exists && !open[id] {
			j.count(job)
		}
	}
	j.open = open
}

func (j *Jobs) count(job fleet.Job) {
	if job.FinishedAt == nil || job.FinishedAt.Before(j.since) || job.StartedAt == nil {
		return // not the end of a job, or of one that this process saw, or that ran
	}
	if slices.Contains(j.counted[:], job.ID) {
		return
	}
	j.counted[j.next] = job.ID
	j.next = (j.next + 1) % maxCounted
	j.seconds.WithLabelValues(string(job.Status)).Observe(job.FinishedAt.Sub(*job.StartedAt).Seconds())
	for _, s := range job.Sources {
		if slices.Contains(sourceRoles, fleet.HostRole(s.Role)) && s.Bytes > 0 {
			j.fetched.WithLabelValues(s.Role).Add(float64(s.Bytes))
		}
	}
}
