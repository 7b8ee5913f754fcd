// Package telemetry makes Prometheus metrics of what happens inside a server: of
// what raft and memberlist emit (Libraries), and of jobs as they end (Jobs). The
// server's wiring makes one of each and hands them to package webui, which
// serves them at /metrics beside what it reads from the state.
//
// Every series exists from the start, at 0, and none is added later: what a
// label can say is fixed here. So a peer that comes and goes, or a host that lies
// about itself, adds no series, and none has to expire. DESIGN.md of package
// webui says why this is not go-metrics' own Prometheus sink.
//
// Times are in seconds, sizes in bytes.
package telemetry

import "github.com/prometheus/client_golang/prometheus"

// group is a fixed set of collectors that is registered as one.
type group []prometheus.Collector

// Describe tells what there is.
func (g group) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range g {
		c.Describe(ch)
	}
}

// Collect reads all of it.
func (g group) Collect(ch chan<- prometheus.Metric) {
	for _, c := range g {
		c.Collect(ch)
	}
}
