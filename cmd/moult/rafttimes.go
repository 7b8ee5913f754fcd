package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"moult/consensus"
)

// raftTimes are the timers of the servers among themselves as flags. All else
// follows from the two, so that they fit each other.
type raftTimes struct{ heartbeat, diskStall time.Duration }

// Limits of the two. Below the least a busy machine looks like a dead one.
const (
	minHeartbeat = 100 * time.Millisecond
	maxHeartbeat = time.Minute
	minDiskStall = time.Second
	maxDiskStall = 10 * time.Minute
)

func (t *raftTimes) register(cmd *cobra.Command) {
	d := consensus.DefaultTiming
	f := cmd.Flags()
	f.DurationVar(&t.heartbeat, "heartbeat", d.Heartbeat, "without a word from the leader for this long, up to twice, a server stands for election; at least ten times the way between servers there and back")
	f.DurationVar(&t.diskStall, "disk-stall", d.DiskStall, "a leader whose disk does not take a write for this long gives up leadership")
}

func (t raftTimes) validate() error {
	var errs []error
	if t.heartbeat < minHeartbeat || t.heartbeat > maxHeartbeat {
		errs = append(errs, fmt.Errorf("--heartbeat is %v; give %v to %v, the same on all servers", t.heartbeat, minHeartbeat, maxHeartbeat))
	}
	if t.diskStall < minDiskStall || t.diskStall > maxDiskStall {
		errs = append(errs, fmt.Errorf("--disk-stall is %v; give %v to %v", t.diskStall, minDiskStall, maxDiskStall))
	}
	return errors.Join(errs...)
}

// timing leaves what is fast enough as it is, and stretches the rest with the
// heartbeat: on a link that slow, a question takes longer, too.
func (t raftTimes) timing() consensus.Timing {
	d := consensus.DefaultTiming
	d.Heartbeat, d.Election, d.Lease = t.heartbeat, t.heartbeat, t.heartbeat
	d.DiskStall = t.diskStall
	d.Probe = max(d.Probe, 2*t.heartbeat)
	d.Promote = max(d.Promote, 3*d.Probe)
	d.RPC = max(d.RPC, 3*t.heartbeat)
	d.Enqueue = max(d.Enqueue, t.heartbeat)
	d.Forward = max(d.Forward, 4*t.heartbeat)
	d.Transfer = max(d.Transfer, 3*t.heartbeat)
	return d
}

// statusTimeout is how long a server may take to say how it is.
func (t raftTimes) statusTimeout() time.Duration { return max(minStatusTimeout, t.heartbeat) }
