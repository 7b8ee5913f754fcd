package nodekit

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"moult/mesh"
	"moult/updater"
)

// What a service manager has to wait for.
const (
	// JoinPatience is how long a start may take until something serves.
	JoinPatience = 3 * time.Minute
	// closePatience is how long it may take from the end of what serves to what comes then.
	closePatience = time.Minute
	// pingParts is how many times the watchdog is told in the time that it waits.
	pingParts = 4
)

// ServiceManager tells systemd how this process is (sd_notify), which is what
// `systemctl status` shows, and keeps its watchdog quiet while all is well. Without
// systemd it tells nobody. It is the updater.Service of a supervisor. Safe for
// concurrent use.
type ServiceManager struct {
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

// NewServiceManager begins: when ctx ends, systemd is told that the service stops.
func NewServiceManager(ctx context.Context, logger *slog.Logger) *ServiceManager {
	m := &ServiceManager{logger: logger.With("component", "service"), pings: make(chan struct{})}
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
func (m *ServiceManager) run(ctx context.Context, every time.Duration) {
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

func (m *ServiceManager) ping(now time.Time) {
	m.mu.Lock()
	well := now.Before(m.well)
	m.mu.Unlock()
	if well {
		m.tell(daemon.SdNotifyWatchdog)
		return
	}
	m.logger.Error("nothing is heard of the agent; the watchdog is not told that all is well")
}

// Close ends what newServiceManager began.
func (m *ServiceManager) Close() {
	m.once.Do(func() { close(m.pings) })
	m.ended.Wait()
}

// Ready says that what was asked for serves.
func (m *ServiceManager) Ready() {
	m.mu.Lock()
	said := m.ready
	m.ready = true
	m.mu.Unlock()
	if m.tell != nil && !said {
		m.tell(daemon.SdNotifyReady)
	}
}

// Well says that all is well, and will be said again within d.
func (m *ServiceManager) Well(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.well = time.Now().Add(d)
}

// Status shows a line in `systemctl status`. It has no line breaks.
func (m *ServiceManager) Status(line string) {
	m.mu.Lock()
	same := m.status == line
	m.status = line
	m.mu.Unlock()
	if m.tell != nil && !same {
		m.tell("STATUS=" + line)
	}
}

// Serving and Alive make it the lifeSigns of a process without a supervisor.
func (m *ServiceManager) Serving() { m.Ready() }

// Alive says that this process works.
func (m *ServiceManager) Alive(status string, within time.Duration) {
	m.Well(within)
	m.Status(status)
}

// LifeSigns are what a serving process says of itself.
type LifeSigns interface {
	Serving()
	Alive(status string, within time.Duration)
}

// LinkSigns says it to the supervisor, who expects it every updater.SignOfLife.
type LinkSigns struct {
	Link   *updater.SupervisorLink
	Logger *slog.Logger
}

// Serving tells the supervisor that the agent serves.
func (s LinkSigns) Serving() { s.note(s.Link.Serving()) }

// Alive tells the supervisor that the agent lives, and how it is.
func (s LinkSigns) Alive(status string, _ time.Duration) { s.note(s.Link.Alive(status)) }

func (s LinkSigns) note(err error) {
	if err != nil {
		s.Logger.Debug("tell the supervisor", "error", err)
	}
}

// ShowLife tells that this process serves, and then, until ctx ends, that it works:
// status looks at the parts whose standstill is this process's, so that where one
// hangs nothing is told any more.
func ShowLife(ctx context.Context, signs LifeSigns, status func() string) {
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
		return "version " + r.Version + ", live peers: " + strconv.Itoa(n) + phase
	}
	return "version " + r.Version + ", no peer has answered yet" + phase
}
