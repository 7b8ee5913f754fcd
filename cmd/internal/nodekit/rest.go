package nodekit

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"time"
)

const (
	// settleTime is when a process has done what it has to do once.
	settleTime = 10 * time.Second
	// restInterval is how often pages of the program that are not in use are given
	// back afterwards, and freeEvery after how many of these times what the heap does
	// not use, too, which takes a collection.
	restInterval = 10 * time.Second
	freeEvery    = 6
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

// ComeToRest gives back, until ctx ends, the memory that a process took for its start
// and for jobs, and needs no more: most of a host's days are spent waiting.
func ComeToRest(ctx context.Context, logger *slog.Logger) {
	t := time.NewTimer(settleTime)
	defer t.Stop()
	for round := 0; ; round++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if round%freeEvery == 0 {
			debug.FreeOSMemory()
		}
		if err := dropProgramPages(); err != nil {
			logger.Debug("give memory back", "error", err)
		}
		t.Reset(restInterval)
	}
}
