package telemetry

import (
	"time"

	gometrics "github.com/hashicorp/go-metrics"
	"github.com/prometheus/client_golang/prometheus"
)

// Libraries takes what raft and memberlist emit through go-metrics and keeps what
// table names; the rest is dropped. It is a gometrics.MetricSink and a
// prometheus.Collector. Safe for concurrent use.
type Libraries struct {
	group
	take map[string]func(float64) // by the library's key, its parts joined by dots
}

// seconds are the buckets of all times: from a write to a good disk to a dial
// that runs into its time limit.
var seconds = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// row is one metric that is made of the keys of a library.
type row struct {
	kind  kind
	name  string
	help  string
	label string            // that tells the keys apart; "" when there is one key
	keys  map[string]string // the library's key, and the label's value for it
}

type kind int

const (
	counter   kind = iota
	gauge          // the last value
	timer          // emitted with MeasureSince, in the granularity that Install sets
	timerInMS      // emitted in milliseconds, whatever the granularity
)

func one(key string) map[string]string { return map[string]string{key: ""} }

// table is what is kept. Labels that a library gives, such as the peer's id, are
// left out: the times of all peers are one histogram.
var table = []row{
	{kind: counter, name: "moult_raft_applies_total", help: "Changes that this server appended to the log as leader.", keys: one("raft.apply")},
	{kind: timer, name: "moult_raft_commit_seconds", help: "From appending an entry on the leader until a majority has it.", keys: one("raft.commitTime")},
	{kind: timer, name: "moult_raft_log_write_seconds", help: "Writing entries to this server's own log on disk, as leader or as follower.", label: "as", keys: map[string]string{
		"raft.leader.dispatchLog": "leader", "raft.rpc.appendEntries.storeLogs": "follower",
	}},
	{kind: timer, name: "moult_raft_apply_seconds", help: "Applying one entry to the state.", keys: one("raft.fsm.apply")},
	{kind: timer, name: "moult_raft_append_rpc_seconds", help: "One message with entries from this leader to a follower, with its answer.", keys: one("raft.replication.appendEntries.rpc")},
	{kind: timer, name: "moult_raft_heartbeat_seconds", help: "One heartbeat from this leader to a follower, with its answer.", keys: one("raft.replication.heartbeat")},
	{kind: counter, name: "moult_raft_replicated_entries_total", help: "Entries that this leader sent to followers.", keys: one("raft.replication.appendEntries.logs")},
	{kind: timerInMS, name: "moult_raft_leader_last_contact_seconds", help: "How long ago this leader had heard from a majority when it looked; at the lease it steps down.", keys: one("raft.leader.lastContact")},
	{kind: counter, name: "moult_raft_state_changes_total", help: "How often this server became a follower, a candidate or the leader.", label: "to", keys: map[string]string{
		"raft.state.follower": "follower", "raft.state.candidate": "candidate", "raft.state.leader": "leader",
	}},
	{kind: counter, name: "moult_raft_timeouts_total", help: "Heartbeats that did not come in time, and leases that this leader could not renew.", label: "of", keys: map[string]string{
		"raft.transition.heartbeat_timeout": "heartbeat", "raft.transition.leader_lease_timeout": "lease",
	}},
	{kind: timer, name: "moult_raft_snapshot_seconds", help: "Taking a snapshot of the state and writing it.", keys: one("raft.snapshot.takeSnapshot")},
	{kind: timer, name: "moult_raft_snapshot_send_seconds", help: "Sending a snapshot to a follower that is far behind.", keys: one("raft.replication.installSnapshot")},
	{kind: timer, name: "moult_raft_restore_seconds", help: "Replacing the state by a snapshot.", keys: one("raft.fsm.restore")},

	{kind: timer, name: "moult_memberlist_gossip_seconds", help: "One round of gossip.", keys: one("memberlist.gossip")},
	{kind: timer, name: "moult_memberlist_probe_seconds", help: "One probe of a member, with indirect ones where it did not answer.", keys: one("memberlist.probeNode")},
	{kind: timer, name: "moult_memberlist_push_pull_seconds", help: "One full exchange of the members with another host.", keys: one("memberlist.pushPullNode")},
	{kind: counter, name: "moult_memberlist_messages_total", help: "Messages about members: alive, suspect, dead.", label: "kind", keys: map[string]string{
		"memberlist.msg.alive": "alive", "memberlist.msg.suspect": "suspect", "memberlist.msg.dead": "dead",
	}},
	{kind: counter, name: "moult_memberlist_sent_bytes_total", help: "Bytes of gossip sent.", label: "transport", keys: map[string]string{
		"memberlist.udp.sent": "udp", "memberlist.tcp.sent": "tcp",
	}},
	{kind: counter, name: "moult_memberlist_connections_total", help: "Connections between members: accepted, and opened.", label: "direction", keys: map[string]string{
		"memberlist.tcp.accept": "in", "memberlist.tcp.connect": "out",
	}},
	{kind: counter, name: "moult_memberlist_degraded_probes_total", help: "Probes that this host made slowly, or whose answers it may have missed, because it is not well itself.", label: "by", keys: map[string]string{
		"memberlist.degraded.probe": "probe", "memberlist.degraded.timeout": "timeout",
	}},
	{kind: gauge, name: "moult_memberlist_health_score", help: "How unwell memberlist holds this host to be; 0 is well.", keys: one("memberlist.health.score")},
	{kind: gauge, name: "moult_memberlist_queued_broadcasts", help: "Broadcasts that waited at the last round of gossip.", keys: one("memberlist.queue.broadcasts")},
}

// NewLibraries returns the sink, with all its series at 0.
func NewLibraries() *Libraries {
	l := &Libraries{take: map[string]func(float64){}}
	for _, r := range table {
		for key, value := range r.keys {
			labels := prometheus.Labels{}
			if r.label != "" {
				labels[r.label] = value
			}
			l.add(key, r, labels)
		}
	}
	return l
}

func (l *Libraries) add(key string, r row, labels prometheus.Labels) {
	switch r.kind {
	case counter:
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: r.name, Help: r.help, ConstLabels: labels})
		l.group = append(l.group, c)
		l.take[key] = func(v float64) { c.Add(max(v, 0)) } // Add panics on less
	case gauge:
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: r.name, Help: r.help, ConstLabels: labels})
		l.group = append(l.group, g)
		l.take[key] = g.Set
	case timer, timerInMS:
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: r.name, Help: r.help, ConstLabels: labels, Buckets: seconds})
		l.group = append(l.group, h)
		l.take[key] = h.Observe
		if r.kind == timerInMS {
			l.take[key] = func(v float64) { h.Observe(v / 1000) }
		}
	}
}

// Install has both libraries, which know one sink for the whole process, emit
// here. The last one that is installed gets all.
func (l *Libraries) Install() error {
	_, err := gometrics.NewGlobal(&gometrics.Config{
		TimerGranularity: time.Second, // of MeasureSince
		FilterDefault:    true,
	}, l)
	return err
}

func (l *Libraries) emit(key []string, v float32) {
	var joined [64]byte
	name := joined[:0]
	for i, part := range key {
		if i > 0 {
			name = append(name, '.')
		}
		name = append(name, part...)
	}
	if take, kept := l.take[string(name)]; kept {
		take(float64(v))
	}
}

// What follows is gometrics.MetricSink.

// SetGauge takes a value that goes up and down.
func (l *Libraries) SetGauge(key []string, v float32) { l.emit(key, v) }

// SetGaugeWithLabels is SetGauge without the labels.
func (l *Libraries) SetGaugeWithLabels(key []string, v float32, _ []gometrics.Label) { l.emit(key, v) }

// EmitKey drops what has no type; neither library calls it.
func (l *Libraries) EmitKey([]string, float32) {}

// IncrCounter adds to a counter.
func (l *Libraries) IncrCounter(key []string, v float32) { l.emit(key, v) }

// IncrCounterWithLabels is IncrCounter without the labels.
func (l *Libraries) IncrCounterWithLabels(key []string, v float32, _ []gometrics.Label) {
	l.emit(key, v)
}

// AddSample takes one of many values.
func (l *Libraries) AddSample(key []string, v float32) { l.emit(key, v) }

// AddSampleWithLabels is AddSample without the labels.
func (l *Libraries) AddSampleWithLabels(key []string, v float32, _ []gometrics.Label) {
	l.emit(key, v)
}
