package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"moult/consensus"
	"moult/mesh"
	"moult/updater"
)

// What a service manager has to wait for.
const (
	// joinPatience is how long a start may take until something serves.
	joinPatience = 3 * time.Minute
	// closePatience is how long it may take from the end of what serves to what comes then.
	closePatience = time.Minute
	// pingParts is how many times the watchdog is told in the time that it waits.
	pingParts = 4
)

// serviceManager tells systemd how this process is (sd_notify), which is what
// `systemctl status` shows, and keeps its watchdog quiet while all is well. Without
// systemd it tells nobody. It is the updater.Service of a supervisor. Safe for
// concurrent use.
type serviceManager struct {
	logger *slog.Logger
	tell   func(state string) // nil: nobody
	pings  chan struct{}      // closed by close
	ended  sync.WaitGroup
	once   sync.Once

	mu     sync.Mutex
	well   time.Time // until when all is well
	status string
	ready  bool
}

// newServiceManager begins: when ctx ends, systemd is told that the service stops.
func newServiceManager(ctx context.Context, logger *slog.Logger) *serviceManager {
	m := &serviceManager{logger: logger.With("component", "service"), pings: make(chan struct{})}
	listens, err := daemon.SdNotify(false, "STATUS=starting")
	if err != nil {
		m.logger.Warn("tell the service manager", "error", err)
	}
	if !listens {
		return m
	}
	m.tell = func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			m.logger.Debug("tell the service manager", "error", err)
		}
	}
	wait, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		m.logger.Warn("read what the watchdog waits for", "error", err)
	}
	m.ended.Go(func() { m.run(ctx, wait/pingParts) })
	return m
}

// run tells the watchdog, every so often, that all is well, for as long as that is so.
func (m *serviceManager) run(ctx context.Context, every time.Duration) {
	var due <-chan time.Time
	if every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		due = t.C
	}
	asked := ctx.Done()
	for {
		select {
		case <-m.pings:
			return
		case <-asked:
			m.tell("STOPPING=1")
			asked = nil
		case now := <-due:
			m.ping(now)
		}
	}
}

func (m *serviceManager) ping(now time.Time) {
	m.mu.Lock()
	well := now.Before(m.well)
	m.mu.Unlock()
	if well {
		m.tell(daemon.SdNotifyWatchdog)
		return
	}
	m.logger.Error("nothing is heard of the agent; the watchdog is not told that all is well")
}

// close ends what newServiceManager began.
func (m *serviceManager) close() {
	m.once.Do(func() { close(m.pings) })
	m.ended.Wait()
}

// Ready says that what was asked for serves.
func (m *serviceManager) Ready() {
	m.mu.Lock()
	said := m.ready
	m.ready = true
	m.mu.Unlock()
	if m.tell != nil && !said {
		m.tell(daemon.SdNotifyReady)
	}
}

// Well says that all is well, and will be said again within d.
func (m *serviceManager) Well(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.well = time.Now().Add(d)
}

// Status shows a line in `systemctl status`. It has no line breaks.
func (m *serviceManager) Status(line string) {
	m.mu.Lock()
	same := m.status == line
	m.status = line
	m.mu.Unlock()
	if m.tell != nil && !same {
		m.tell("STATUS=" + line)
	}
}

// Serving and Alive make it the lifeSigns of a process without a supervisor.
func (m *serviceManager) Serving() { m.Ready() }

// Alive says that this process works.
func (m *serviceManager) Alive(status string, within time.Duration) {
	m.Well(within)
	m.Status(status)
}

// lifeSigns are what a serving process says of itself.
type lifeSigns interface {
	Serving()
	Alive(status string, within time.Duration)
}

// linkSigns says it to the supervisor, who expects it every updater.SignOfLife.
type linkSigns struct {
	link   *updater.SupervisorLink
	logger *slog.Logger
}

func (s linkSigns) Serving() { s.note(s.link.Serving()) }

func (s linkSigns) Alive(status string, _ time.Duration) { s.note(s.link.Alive(status)) }

func (s linkSigns) note(err error) {
	if err != nil {
		s.logger.Debug("tell the supervisor", "error", err)
	}
}

// showLife tells that this process serves, and then, until ctx ends, that it works:
// status looks at the parts whose standstill is this process's, so that where one
// hangs nothing is told any more.
func showLife(ctx context.Context, signs lifeSigns, status func() string) {
	const silence = 4 * updater.SignOfLife
	signs.Alive(status(), silence)
	signs.Serving()
	t := time.NewTimer(time.Second) // what is missing at first has come by then
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			signs.Alive("stopping", closePatience)
			return
		case <-t.C:
			signs.Alive(status(), silence)
			t.Reset(updater.SignOfLife)
		}
	}
}

// agentStatus is one line about a running agent.
func agentStatus(node *mesh.Node) string {
	r := node.Record()
	phase := ""
	if r.Phase != "" && r.Phase != "idle" {
		phase = ", " + string(r.Phase)
	}
	if n := node.LivePeers(); n > 0 {
		return fmt.Sprintf("version %s, live peers: %d%s", r.Version, n, phase)
	}
	return fmt.Sprintf("version %s, no peer has answered yet%s", r.Version, phase)
}

// serverStatus is one line about a running server: what /readyz says, in short.
func serverStatus(raft *consensus.Node, node *mesh.Node) string {
	raft.State().View()
	if err := raft.Ready(); err != nil {
		p, _ := judgeReady(serverFacts{Ready: err})
		return fmt.Sprintf("version %s, not ready (%s): %s", version, p.Code, p.Message)
	}
	return fmt.Sprintf("version %s, ready, live peers: %d", version, node.LivePeers())
}
