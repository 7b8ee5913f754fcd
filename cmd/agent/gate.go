package agent

import (
	"io"
	"sync"
)

// gate is a writer that drops everything once it is shut: what goroutines that are
// on their way out still log must not come after the program's last word. Safe for
// concurrent use.
type gate struct {
	mu   sync.Mutex
	to   io.Writer
	done bool
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done {
		return len(p), nil
	}
	return g.to.Write(p)
}

// shut waits for a Write under way.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done = true
}
