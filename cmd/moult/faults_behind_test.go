//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Compaction that takes a second, so that a follower is soon too far behind for the
// log. What a server does then is the same with the defaults.
const (
	behindEntries  = 60
	behindTrailing = 20
)

// compaction are the flags for it.
var compaction = []string{
	fmt.Sprintf("--server-arg=--snapshot-entries=%d", behindEntries), fmt.Sprintf("--server-arg=--snapshot-trailing=%d", behindTrailing),
	"--server-arg=--snapshot-interval=1s",
}

// leaveBehind stops a follower with -9 until the others' logs begin after its end,
// and starts it again.
func (f *faultRun) leaveBehind() {
	f.gapLimit = failoverLimit
	leader := f.c.leader()
	name := leader
	for name == leader {
		name = fmt.Sprintf("server-%d", 1+f.rng.IntN(3))
	}
	installed := strings.Count(f.c.read(name+"/log"), "Installed remote snapshot")
	restart := f.c.killForRestart(name)
	last := f.appliedIndex()
	f.c.await(cyclePatience, "the logs to be compacted behind "+name, func() error {
		for range 20 {
			if err := f.c.try(http.MethodPost, "/api/tokens", map[string]string{"name": "w-behind", "role": "viewer"}, nil); err != nil {
				return err
			}
		}
		f.writer.revoke() // the state takes only so many
		for i := range 3 {
			other := fmt.Sprintf("server-%d", i+1)
			if at := newestSnapshot(filepath.Join(f.c.dir, other, "data", "raft")); other != name && at < last+behindTrailing {
				return fmt.Errorf("the newest snapshot of %s is of %d; %s has some of %d", other, at, name, last)
			}
		}
		return nil
	})
	restart()
	f.c.await(catchUpLimit, name+" to have got a snapshot", func() error {
		if strings.Count(f.c.read(name+"/log"), "Installed remote snapshot") == installed {
			return errors.New("its log tells of none")
		}
		return nil
	})
	f.well(catchUpLimit)
}

// appliedIndex is how far the cluster is.
func (f *faultRun) appliedIndex() (most uint64) {
	f.t.Helper()
	f.c.await(time.Minute, "the servers' indices", func() error {
		servers, err := f.c.client.servers(context.Background())
		for _, s := range servers {
			most = max(most, s.AppliedIndex)
		}
		return err
	})
	return most
}

// newestSnapshot is the index of the newest snapshot in a Raft directory; 0 when there
// is none. Their names are TERM-INDEX-TIME.
func newestSnapshot(dir string) (newest uint64) {
	paths, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
	for _, path := range paths {
		parts := strings.Split(filepath.Base(path), "-")
		if len(parts) != 3 || strings.HasSuffix(path, ".tmp") {
			continue
		}
		if index, err := strconv.ParseUint(parts[1], 10, 64); err == nil {
			newest = max(newest, index)
		}
	}
	return newest
}
