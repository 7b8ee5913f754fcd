package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"moult/consensus"
	"moult/mesh"
	"moult/updater/artifact"
)

// serverNumbers collects, when it is asked, what the parts of this server count.
type serverNumbers struct {
	raft      *consensus.Node
	mesh      *mesh.Node
	store     *artifact.Store
	artifacts *artifact.Server
}

func numberDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descLeads     = numberDesc("moult_raft_leader", "1 when this server leads and may act on it.")
	descKnows     = numberDesc("moult_raft_has_leader", "1 when this server leads, or hears from a leader.")
	descTerm      = numberDesc("moult_raft_term", "The term of the last election that this server knows; it rises with each election.")
	descLast      = numberDesc("moult_raft_last_index", "Index of the last entry in this server's log.")
	descCommitted = numberDesc("moult_raft_commit_index", "Index up to which this server knows the log to be committed.")
	descVoters    = numberDesc("moult_raft_voters", "Servers that count for a majority, by the newest configuration that this one has.")
	descLogBytes  = numberDesc("moult_raft_log_bytes", "Size of the log's file.")
	descKept      = numberDesc("moult_artifact_kept_bytes", "Bytes of releases that this server keeps: artifacts, parts of them and patches.")
	descFree      = numberDesc("moult_data_free_bytes", "Bytes that may still be written in the data directory; absent where that is not known.")
	descServed    = numberDesc("moult_artifact_served_bytes_total", "Bytes of artifacts that this server sent to other hosts.")
	descFetched   = numberDesc("moult_artifact_fetched_bytes_total", "Bytes of artifacts that this server fetched from other hosts.")
	descRefused   = numberDesc("moult_mesh_refused_total", "Records and messages of the mesh that changed nothing, by why.", "what", "reason")
	descForwarded = numberDesc("moult_mesh_forwarded_total", "Messages that this server passed on as a relay.")
)

// Describe tells what there is.
func (serverNumbers) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descLeads, descKnows, descTerm, descLast, descCommitted, descVoters, descLogBytes, descKept, descFree,
		descServed, descFetched, descRefused, descForwarded,
	} {
		ch <- d
	}
}

// Collect reads all of it.
func (n serverNumbers) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue

	s := n.raft.Stats()
	send(descLeads, gauge, oneIf(s.Leads))
	send(descKnows, gauge, oneIf(s.Knows))
	send(descTerm, gauge, float64(s.Term))
	send(descLast, gauge, float64(s.LastIndex))
	send(descCommitted, gauge, float64(s.CommitIndex))
	send(descVoters, gauge, float64(s.Voters))
	send(descLogBytes, gauge, float64(s.LogBytes))
	if free, known := n.store.FreeBytes(); known {
		send(descFree, gauge, float64(free))
	}
	send(descKept, gauge, float64(n.store.Used()))
	send(descServed, counter, float64(n.artifacts.Served()))
	send(descFetched, counter, float64(n.store.Fetched()))

	c := n.mesh.Counters()
	for _, r := range []struct {
		what, reason string
		n            uint64
	}{
		{"record", "unverified", c.UnverifiedRecords},
		{"record", "stale", c.StaleRecords},
		{"record", "malformed", c.MalformedRecords},
		{"message", "unverified", c.UnverifiedMessages},
		{"message", "replayed", c.ReplayedMessages},
		{"message", "malformed", c.MalformedMessages},
		{"message", "dropped", c.DroppedMessages},
		{"any", "removed_host", c.RemovedHosts},
	} {
		send(descRefused, counter, float64(r.n), r.what, r.reason)
	}
	send(descForwarded, counter, float64(c.ForwardedMessages))
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
