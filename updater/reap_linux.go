package updater

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Process 1 of a container inherits every process whose parent ends, and has to wait
// for it, or its number is never free again. Go waits for its own children only.
const (
	reapEvery = time.Second
	// reapAfter is how many rounds a process has to be dead: one that somebody here
	// waits for is gone long before.
	reapAfter = 2
)

// ReapOrphans waits for dead processes that nobody else waits for, until ctx ends,
// where this is process 1; elsewhere it returns at once.
func ReapOrphans(ctx context.Context) {
	if os.Getpid() != 1 {
		return
	}
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	dead := map[int]int{} // rounds
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := map[int]int{}
		for _, pid := range deadChildren(os.Getpid()) {
			if now[pid] = dead[pid] + 1; now[pid] > reapAfter {
				_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
				delete(now, pid)
			}
		}
		dead = now
	}
}

// deadChildren are the processes whose parent has the id that ended and were not
// waited for.
func deadChildren(parent int) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// "PID (NAME) STATE PARENT …", and anything may be in the name.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 && string(fields[0]) == "Z" && string(fields[1]) == strconv.Itoa(parent) {
			pids = append(pids, pid)
		}
	}
	return pids
}
