package nodekit

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	// settleTime is when a process has done what it has to do once.
	settleTime = 10 * time.Second
	// freeInterval is how often it gives back, afterwards, what the heap does not use,
	// which takes a collection. An agent gives back pages of the program that are not
	// in use in between, too, every restInterval: connections and collections, which
	// are over soon, need pages that nothing else does.
	freeInterval = time.Minute
	restInterval = 5 * time.Second
	// restGCPercent: an agent's heap is so small that to collect it often costs less
	// than what it would grow to in between. The runtime's own 100 stands for 4 MB.
	restGCPercent = 25
)

// KeepHeapSmall has the heap of this process collected early, unless the
// environment (GOGC) says when.
func KeepHeapSmall() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(restGCPercent)
	}
}

// KeepToOneCore has this process run on one core at a time, unless the environment
// (GOMAXPROCS) says otherwise. Go's runtime keeps memory for each, wakes idle ones to
// look for work whenever there is some, and asks each second how many there are.
func KeepToOneCore() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}

// ComeToRest gives back, until ctx ends, the memory that a process took for its start
// and for jobs, and needs no more: most of a host's days are spent waiting. interval is
// how often it lets go of the program's pages; at most freeInterval.
func ComeToRest(ctx context.Context, interval time.Duration, logger *slog.Logger) {
	var program programPages
	t := time.NewTimer(settleTime)
	defer t.Stop()
	var freed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		t.Reset(interval)
		if time.Since(freed) > freeInterval-interval/2 {
			debug.FreeOSMemory()
			freed = time.Now()
		}
		if err := program.drop(); err != nil { // the last thing: what follows comes back
			logger.Debug("give memory back", "error", err)
		}
	}
}
