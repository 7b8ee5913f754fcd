package webui

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"moult/consensus/fleet"
)

func (u *ui) getVersion(w http.ResponseWriter, _ *http.Request) error {
	return ok(w, map[string]string{"version": u.Version, "commit": u.Commit})
}

func getHealth(w http.ResponseWriter, _ *http.Request) error {
	return ok(w, map[string]string{"status": "up"})
}

func (u *ui) getReady(w http.ResponseWriter, _ *http.Request) error {
	if err := u.Ready(); err != nil {
		return refuse(codeNotReady, err.Error())
	}
	return ok(w, map[string]string{"status": "ready"})
}

// metrics serves Prometheus metrics. They are computed when they are asked for,
// from what the API shows, so the two cannot disagree.
func (u *ui) metrics() handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		fleetCollector{u},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	h := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}
}

// The metrics of a server. Those of the fleet are the same on every server that
// is caught up, but for what it observes itself.
var (
	descBuild   = prometheus.NewDesc("moult_build_info", "The running program; always 1.", []string{"version", "commit"}, nil)
	descReady   = prometheus.NewDesc("moult_ready", "1 when this server has a leader and is caught up.", nil, nil)
	descIndex   = prometheus.NewDesc("moult_state_index", "Index of the last log entry applied here.", nil, nil)
	descUnknown = prometheus.NewDesc("moult_state_unknown_entries", "Log entries passed over because a newer server wrote them.", nil, nil)
	descHosts   = prometheus.NewDesc("moult_hosts", "Agents by state, as observed here.", []string{"state"}, nil)
	descBehind  = prometheus.NewDesc("moult_hosts_behind", "Agents whose version is known and is not the target.", nil, nil)
	descJobs    = prometheus.NewDesc("moult_jobs_open", "Jobs that have not ended, by status.", []string{"status"}, nil)
	descTurns   = prometheus.NewDesc("moult_fleet_update_hosts", "Hosts of the active fleet update by status; absent when there is none.", []string{"status"}, nil)
	descAlerts  = prometheus.NewDesc("moult_alerts_open", "Alerts that are open.", nil, nil)
)

type fleetCollector struct{ u *ui }

func (c fleetCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descBuild, descReady, descIndex, descUnknown, descHosts, descBehind, descJobs, descTurns, descAlerts} {
		ch <- d
	}
}

func (c fleetCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	p := c.u.picture()
	gauge(descBuild, 1, c.u.Version, c.u.Commit)
	ready := 0
	if c.u.Ready() == nil {
		ready = 1
	}
	gauge(descReady, ready)
	ch <- prometheus.MustNewConstMetric(descIndex, prometheus.GaugeValue, float64(p.Index()))
	ch <- prometheus.MustNewConstMetric(descUnknown, prometheus.GaugeValue, float64(p.Unknown()))

	counts := p.counts()
	gauge(descHosts, counts.Online, "online")
	gauge(descHosts, counts.Offline-counts.Left, "offline")
	gauge(descHosts, counts.Left, "left")
	gauge(descHosts, counts.Unreachable, "unreachable")
	gauge(descBehind, counts.Behind)

	jobs := map[fleet.JobStatus]int{fleet.JobQueued: 0, fleet.JobRunning: 0}
	for _, j := range p.OpenJobs() {
		jobs[j.Status]++
	}
	for status, n := range jobs {
		gauge(descJobs, n, string(status))
	}
	if active, exists := p.ActiveFleetUpdate(); exists {
		for status, n := range countTurns(active.Hosts) {
			gauge(descTurns, n, string(status))
		}
	}
	gauge(descAlerts, len(p.OpenAlerts()))
}

// hostCounts are the numbers on the dashboard.
type hostCounts struct {
	Online  int
	Offline int // Left among them, Unreachable not
	Left    int

	Unreachable int
	Behind      int
}

func (p picture) counts() (c hostCounts) {
	for _, h := range p.agents() {
		switch p.status(h) {
		case statusOnline:
			c.Online++
		case statusUnreachable:
			c.Unreachable++
		case statusLeft:
			c.Left++
			c.Offline++
		default:
			c.Offline++
		}
		if p.behind(h.ID, p.target) {
			c.Behind++
		}
	}
	return c
}

func countTurns(turns []fleet.FleetUpdateHost) map[fleet.FleetUpdateHostStatus]int {
	n := map[fleet.FleetUpdateHostStatus]int{
		fleet.TurnPending: 0, fleet.TurnRunning: 0, fleet.TurnSucceeded: 0, fleet.TurnFailed: 0, fleet.TurnSkipped: 0,
	}
	for _, t := range turns {
		n[t.Status]++
	}
	return n
}
