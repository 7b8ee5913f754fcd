package webui

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"moult/consensus/fleet"
)

// maxVersionSeries is how many versions have series of their own: a host says of
// itself which version it runs, and each of ten thousand may say another. The
// hosts of the rarest versions are counted as otherVersions.
const (
	maxVersionSeries = 20
	otherVersions    = "(other)" // no release can be called so
)

// newRegistry makes what /metrics serves. What is of the fleet is computed when it
// is asked for, from what the API shows, so the two cannot disagree.
func (u *ui) newRegistry() (*prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	all := append([]prometheus.Collector{
		fleetCollector{u},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	}, u.Metrics...)
	for _, c := range all {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("webui: Config.Metrics: %w", err)
		}
	}
	return registry, nil
}

func (u *ui) metrics(w http.ResponseWriter, r *http.Request) error {
	promhttp.HandlerFor(u.registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
	return nil
}

// The metrics of the fleet. They are the same on every server that is caught up,
// but for what it observes itself.
var (
	descBuild       = prometheus.NewDesc("moult_build_info", "The running program; always 1.", []string{"version", "commit"}, nil)
	descReady       = prometheus.NewDesc("moult_ready", "1 when this server has a leader and is caught up.", nil, nil)
	descProblem     = prometheus.NewDesc("moult_server_problem", "1 while this is wrong with this server, else 0; failing: it keeps it from serving.", []string{"code", "failing"}, nil)
	descIndex       = prometheus.NewDesc("moult_state_index", "Index of the last log entry applied here.", nil, nil)
	descUnknown     = prometheus.NewDesc("moult_state_unknown_entries", "Log entries passed over because a newer server wrote them.", nil, nil)
	descHosts       = prometheus.NewDesc("moult_hosts", "Agents by state, as observed here.", []string{"state"}, nil)
	descVersions    = prometheus.NewDesc("moult_hosts_by_version", "Agents by the version that they run and by state; the version is empty until it was seen.", []string{"version", "state"}, nil)
	descBehind      = prometheus.NewDesc("moult_hosts_behind", "Agents whose version is known and is not the target.", nil, nil)
	descJobs        = prometheus.NewDesc("moult_jobs_open", "Jobs that have not ended, by status.", []string{"status"}, nil)
	descFleetUpdate = prometheus.NewDesc("moult_fleet_update_status", "1 for the status of the newest fleet update; all are 0 when there was none.", []string{"status"}, nil)
	descTurns       = prometheus.NewDesc("moult_fleet_update_hosts", "Hosts of the active fleet update by status; all are 0 when there is none.", []string{"status"}, nil)
	descStaged      = prometheus.NewDesc("moult_fleet_update_hosts_staged", "Hosts of the active fleet update that wait for their turn and have the release.", nil, nil)
	descKept        = prometheus.NewDesc("moult_hosts_kept_bytes", "Bytes that agents that are online keep of releases, by what they say.", nil, nil)
	descAlerts      = prometheus.NewDesc("moult_alerts_open", "Alerts that are open.", nil, nil)
	descStreams     = prometheus.NewDesc("moult_event_streams", "Event streams that are open on this server.", nil, nil)
)

type fleetCollector struct{ u *ui }

// Describe tells what there is.
func (c fleetCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild, descReady, descProblem, descIndex, descUnknown, descHosts, descVersions, descBehind, descJobs,
		descFleetUpdate, descTurns, descStaged, descKept, descAlerts, descStreams,
	} {
		ch <- d
	}
}

// Collect computes all of it from one picture.
func (c fleetCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	p := c.u.picture()
	gauge(descBuild, 1, c.u.Version, c.u.Commit)
	problems, ready := c.u.Problems(), 1
	if _, failing := firstFailing(problems); failing {
		ready = 0
	}
	gauge(descReady, ready)
	for code, failing := range c.u.ProblemCodes {
		there := 0
		if slices.ContainsFunc(problems, func(p Problem) bool { return p.Code == code }) {
			there = 1
		}
		gauge(descProblem, there, code, strconv.FormatBool(failing))
	}
	ch <- prometheus.MustNewConstMetric(descIndex, prometheus.GaugeValue, float64(p.Index()))
	ch <- prometheus.MustNewConstMetric(descUnknown, prometheus.GaugeValue, float64(p.Unknown()))

	counts := p.counts()
	gauge(descHosts, counts.Online, "online")
	gauge(descHosts, counts.Offline-counts.Left, "offline")
	gauge(descHosts, counts.Left, "left")
	gauge(descHosts, counts.Unreachable, "unreachable")
	for key, n := range p.countVersions() {
		gauge(descVersions, n, key.version, key.state)
	}
	gauge(descBehind, counts.Behind)

	jobs := map[fleet.JobStatus]int{fleet.JobQueued: 0, fleet.JobRunning: 0}
	for _, j := range p.OpenJobs() {
		jobs[j.Status]++
	}
	for status, n := range jobs {
		gauge(descJobs, n, string(status))
	}
	for status, n := range p.newestFleetUpdate() {
		gauge(descFleetUpdate, n, string(status))
	}
	active, _ := p.ActiveFleetUpdate()
	for status, n := range countTurns(active.Hosts) {
		gauge(descTurns, n, string(status))
	}
	gauge(descStaged, p.countStaged(active))
	ch <- prometheus.MustNewConstMetric(descKept, prometheus.GaugeValue, float64(p.keptBytes()))
	gauge(descAlerts, len(p.OpenAlerts()))
	gauge(descStreams, c.u.streams.open())
}

// versionState is what hosts are counted by.
type versionState struct{ version, state string }

// countVersions counts the agents, those of all but the most frequent versions
// together.
func (p picture) countVersions() map[versionState]int {
	exact, hosts := map[versionState]int{}, map[string]int{}
	for _, h := range p.agents() {
		version := strings.ToValidUTF8(p.observed[h.ID].Version, "?") // a host may say anything, a label may not
		exact[versionState{version, p.status(h)}]++
		hosts[version]++
	}
	frequent := slices.SortedFunc(maps.Keys(hosts), func(a, b string) int {
		return cmp.Or(cmp.Compare(hosts[b], hosts[a]), strings.Compare(a, b))
	})
	if len(frequent) <= maxVersionSeries {
		return exact
	}
	frequent = frequent[:maxVersionSeries]
	counts := map[versionState]int{}
	for key, n := range exact {
		if !slices.Contains(frequent, key.version) {
			key.version = otherVersions
		}
		counts[key] += n
	}
	return counts
}

func (p picture) newestFleetUpdate() map[fleet.FleetUpdateStatus]int {
	n := map[fleet.FleetUpdateStatus]int{
		fleet.FleetRunning: 0, fleet.FleetPaused: 0, fleet.FleetCompleted: 0, fleet.FleetHalted: 0, fleet.FleetCancelled: 0,
	}
	if updates := p.FleetUpdates(); len(updates) > 0 {
		n[updates[0].Status] = 1
	}
	return n
}

func (p picture) countStaged(f fleet.FleetUpdate) (n int) {
	if f.ID == "" {
		return 0
	}
	for _, t := range p.fleetUpdate(f).Hosts {
		if t.Staged {
			n++
		}
	}
	return n
}

// keptBytes adds up what agents keep of releases.
func (p picture) keptBytes() (bytes int64) {
	for _, h := range p.agents() {
		if o := p.observed[h.ID]; o.Online {
			bytes += o.KeptBytes
		}
	}
	return bytes
}

func countTurns(turns fleet.Turns) map[fleet.FleetUpdateHostStatus]int {
	n := map[fleet.FleetUpdateHostStatus]int{
		fleet.TurnPending: 0, fleet.TurnRunning: 0, fleet.TurnSucceeded: 0, fleet.TurnFailed: 0, fleet.TurnSkipped: 0,
	}
	for _, t := range turns.All() {
		n[t.Status]++
	}
	return n
}
