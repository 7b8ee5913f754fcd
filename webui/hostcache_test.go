package webui

import (
	"fmt"
	"sync"
	"testing"

	"moult/consensus/fleet"
)

// TestHostListsBelongToTheirState reads lists while the fleet changes: each is
// that of the view it was asked for.
func TestHostListsBelongToTheirState(t *testing.T) {
	w := StartWorld(t)
	var cache hostCache
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				v := w.state.View()
				agents, servers := cache.lists(v)
				for _, h := range agents {
					if got, exists := v.Host(h.ID); !exists || got.Role != fleet.RoleAgent {
						t.Errorf("%s is not an agent at index %d", h.Name, v.Index())
					}
				}
				if len(servers) != 1 || len(agents)+len(servers) != len(v.Hosts()) {
					t.Errorf("%d agents and %d servers of %d hosts", len(agents), len(servers), len(v.Hosts()))
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range 20 {
		id := w.MustEnrol(fmt.Sprint("a", i), "1.0.0", true)
		w.MustPropose("user:admin", fleet.HostRemoved{HostID: id})
	}
	close(done)
	readers.Wait()
}
