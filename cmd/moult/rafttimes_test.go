package main

import (
	"strings"
	"testing"
	"time"

	"moult/consensus"
)

func TestTimersOfServersAreChecked(t *testing.T) {
	good := raftTimes{heartbeat: consensus.DefaultTiming.Heartbeat, diskStall: consensus.DefaultTiming.DiskStall}
	for _, tt := range []struct {
		times raftTimes
		want  string // in the error; "": none
	}{
		{good, ""},
		{raftTimes{minHeartbeat, minDiskStall}, ""},
		{raftTimes{maxHeartbeat, maxDiskStall}, ""},
		{raftTimes{minHeartbeat - 1, good.diskStall}, "--heartbeat is 99.999999ms; give 100ms to 1m0s"},
		{raftTimes{maxHeartbeat + 1, good.diskStall}, "--heartbeat"},
		{raftTimes{good.heartbeat, 0}, "--disk-stall is 0s; give 1s to 10m0s"},
		{raftTimes{good.heartbeat, maxDiskStall + 1}, "--disk-stall"},
	} {
		err := tt.times.validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.times, err, tt.want)
		}
	}
	if got := good.timing(); got != consensus.DefaultTiming {
		t.Errorf("with the defaults the timers are %+v", got)
	}
	if good.statusTimeout() != minStatusTimeout {
		t.Errorf("with the defaults a server has %v to say how it is", good.statusTimeout())
	}
	slow := raftTimes{heartbeat: 5 * time.Second, diskStall: 20 * time.Second}
	got := slow.timing()
	if got.Lease > got.Heartbeat || got.Election < got.Heartbeat || got.RPC < got.Heartbeat || got.Probe < got.Heartbeat || slow.statusTimeout() < got.Heartbeat || got.DiskStall != 20*time.Second {
		t.Errorf("with slow links the timers are %+v", got)
	}
}
