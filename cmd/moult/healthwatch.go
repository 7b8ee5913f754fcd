package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater/artifact"
	"moult/webui"
)

const (
	// healthInterval is between two looks at the other servers.
	healthInterval = 5 * time.Second
	// meshGrace is how long after its start a server may lack the others in its mesh.
	meshGrace = 30 * time.Second
)

// healthWatch keeps the facts that this server's health is judged by. Those about
// others come from asking them now and then, so that telling them takes no time.
type healthWatch struct {
	raft    *consensus.Node
	roster  *mesh.Roster
	store   *artifact.Store
	others  *serverClient
	current *identity.Current
	self    string
	started time.Time // of the mesh

	mu    sync.Mutex
	asked serverFacts // what the last look found
}

// run looks until ctx ends.
func (w *healthWatch) run(ctx context.Context) {
	for {
		w.look(ctx)
		if !nodekit.Sleep(ctx, healthInterval) {
			return
		}
	}
}

// look asks all other servers at once.
func (w *healthWatch) look(ctx context.Context) {
	servers := w.raft.Servers()
	found := serverFacts{Asked: true}
	clocks := []time.Duration{0} // against this server's
	var (
		mu    sync.Mutex
		tasks sync.WaitGroup
	)
	for _, s := range servers { // before anybody answers
		if s.Voter {
			found.Voters++
			if s.ID == w.self {
				found.Answering++
			}
		}
	}
	for _, s := range servers {
		if s.ID == w.self {
			continue
		}
		tasks.Go(func() {
			before := time.Now()
			st, err := w.others.Status(ctx, s.Address)
			if err != nil {
				return
			}
			took := time.Since(before)
			mu.Lock()
			defer mu.Unlock()
			found.OthersAnswer++
			if s.Voter {
				found.Answering++
			}
			if !st.Now.IsZero() { // an older server does not tell
				clocks = append(clocks, st.Now.Sub(before.Add(took/2)))
			}
		})
	}
	tasks.Wait()
	found.ClockOff = -median(clocks)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = found
}

// median of an even number is the lower one in the middle that is further off: of
// two servers whose clocks differ each says so.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	a, b := d[(len(d)-1)/2], d[len(d)/2]
	if b.Abs() > a.Abs() {
		return b
	}
	return a
}

// problems judges this server.
func (w *healthWatch) problems() []webui.Problem {
	w.mu.Lock()
	f := w.asked
	w.mu.Unlock()
	f.Ready, f.Now = w.raft.Ready(), time.Now()
	f.FreeBytes, f.FreeKnown = w.store.FreeBytes()
	for _, m := range w.roster.Servers() {
		if m.HostID != w.self {
			f.OthersInMesh++
		}
	}
	if f.Now.Sub(w.started) < meshGrace {
		f.OthersInMesh = max(f.OthersInMesh, f.OthersAnswer)
	}
	if issued, ends, err := w.current.Get().Validity(); err == nil {
		f.CertFrom, f.CertEnds = issued, ends
	}
	return judge(f)
}
