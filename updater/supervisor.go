package updater

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"moult/updater/install"
)

// SupervisorConfig says what RunSupervisor runs. Zero durations and counts mean
// the defaults.
type SupervisorConfig struct {
	Installed string   // path of the installed binary; where there is an active one, of the packaged one
	Active    bool     // this process is the active binary: see BeginActive
	DataDir   string   // the agent's data directory
	Args      []string // the child's arguments, without the program's name
	Env       []string // the child's environment; nil: this process's

	TrialTimeout    time.Duration // a trial commits within it or is rolled back; 60 s
	MaxStarts       int           // failed starts after which a trial is rolled back; 3
	Soak            time.Duration // how long the trial stays up after it joined; 5 s, negative: none
	StopTimeout     time.Duration // a child asked to stop is killed after it; 10 s
	RestartDelay    time.Duration // before a crashed child starts again, doubling; 1 s
	MaxRestartDelay time.Duration // where the doubling ends; 30 s

	// Restart is for systems without exec (Windows): it has the service manager stop
	// this process, swap the binaries if the marker's is not the installed one yet,
	// and start the installed one. It returns at once; an error means that nothing
	// will happen. Nil, and after errors: this process goes on until it is stopped.
	Restart func(install.Marker) error

	// Output gets what the children print; nil: standard error. It and the Logger
	// may block: what they do not take in time is dropped.
	Output io.Writer
	Logger *slog.Logger
	// Service is told how the agent is; nil: nobody.
	Service Service
	// SwapStep is install.SwapRequest.Step, for tests that cut the power.
	SwapStep func(step string) error
}

func (c *SupervisorConfig) validate() error {
	if c.Installed == "" || c.DataDir == "" {
		return errors.New("supervisor: the installed binary and the data directory have to be named")
	}
	setDefault(&c.TrialTimeout, 60*time.Second)
	setDefault(&c.MaxStarts, 3)
	setDefault(&c.Soak, 5*time.Second)
	setDefault(&c.StopTimeout, 10*time.Second)
	setDefault(&c.RestartDelay, time.Second)
	setDefault(&c.MaxRestartDelay, 30*time.Second)
	c.Soak = max(c.Soak, 0)
	if c.Soak >= c.TrialTimeout {
		return fmt.Errorf("supervisor: the soak (%v) has to be shorter than the trial (%v)", c.Soak, c.TrialTimeout)
	}
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if c.Output == nil {
		c.Output = os.Stderr
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Service == nil {
		c.Service = noService{}
	}
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// flushOutput is how long what was printed last is waited for.
const flushOutput = time.Second

// RunSupervisor runs the agent as its child until ctx ends, and then stops it:
// it asks, and kills after StopTimeout. A child that ends by itself is started
// again, after a delay that doubles while it keeps crashing; one that exits with
// ExitRestart is followed by the trial of the staged binary, one with ExitGiveUp
// ends the supervisor with ErrGaveUp. After a commit it becomes the new binary's
// supervisor by exec (Unix) and keeps its process id and the running child.
//
// Call it once per process and early: it holds its thread, because on Linux a
// child is killed when the thread that started it ends, exec included.
func RunSupervisor(ctx context.Context, cfg SupervisorConfig) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s := supervisorOf(cfg)
	signal.Notify(s.asked, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(s.asked)
	defer s.side.flush(flushOutput)
	defer s.dropAhead()
	s.Service.Well(startPatience)
	defer reapWhile(ctx)()
	c := s.adopt()
	if c == nil {
		// Not after adopting: the child may have staged the next trial already.
		s.recover()
	}
	return s.run(ctx, c)
}

// reapWhile reaps orphans until the returned function is called.
func reapWhile(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ReapOrphans(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// supervisorOf makes a supervisor that prints past what blocks.
func supervisorOf(cfg SupervisorConfig) *supervisor {
	side := &sideline{to: cfg.Output}
	cfg.Output = side
	return &supervisor{
		SupervisorConfig: cfg, side: side, delay: cfg.RestartDelay, asked: make(chan os.Signal, 1),
		log: slog.New(sidelinedHandler{cfg.Logger.Handler(), side}).With("component", "supervisor"),
	}
}

// supervisor is the state of RunSupervisor, owned by its goroutine.
type supervisor struct {
	SupervisorConfig
	side  *sideline      // what log and Output are printed by
	asked chan os.Signal // holds a request to stop, which ends the context, too, but in its own time
	log   *slog.Logger
	delay time.Duration // before the next start of a crashed child
	alone bool          // RunTrial: this process takes the place of what it commits
	begun *ahead        // of the trial that is due next, or under way; nil: nothing
}

// run keeps a child running; c is the one to begin with, or nil.
func (s *supervisor) run(ctx context.Context, c *child) error {
	for {
		if c == nil {
			s.dropAhead()
			var err error
			if c, err = s.startInstalled(); err != nil {
				s.log.Error("start agent", "error", err)
				s.status("cannot start the agent: " + err.Error())
				if !s.wait(ctx) {
					return nil
				}
				continue
			}
		}
		code, stopped := s.watch(ctx, c)
		switch {
		case stopped:
			return nil
		case code == ExitGiveUp:
			return fmt.Errorf("%w: %s", ErrGaveUp, c.tail.last())
		case code == ExitRestart:
			began := c.began
			c = s.trial(ctx)
			// An agent that asks for a restart each time it starts must not spin.
			if c == nil && time.Since(began) < s.RestartDelay && !s.wait(ctx) {
				return nil
			}
		default:
			s.log.Warn("agent ended; starting it again", "status", c.state.String(), "delay", s.delay, "last_output", c.tail.last())
			s.status(fmt.Sprintf("the agent ended (%v); starting it again in %v", c.state, s.delay))
			c = nil
			if !s.wait(ctx) {
				return nil
			}
			continue
		}
		if ctx.Err() != nil && c == nil {
			return nil
		}
	}
}

// watch waits for the child's end. A child that stayed up for as long as the
// longest delay has earned a quick restart.
func (s *supervisor) watch(ctx context.Context, c *child) (code int, stopped bool) {
	for {
		select {
		case <-ctx.Done():
			s.stop(c)
			return 0, true
		case m := <-c.messages:
			s.log.Debug("agent says", "event", m.Event)
			s.heard(m)
		case <-c.exited:
			if time.Since(c.began) >= s.MaxRestartDelay || c.state.ExitCode() == ExitRestart {
				s.delay = s.RestartDelay
			}
			return c.state.ExitCode(), false
		}
	}
}

// wait waits for the restart delay and doubles it; false: ctx ended.
func (s *supervisor) wait(ctx context.Context) bool {
	s.Service.Well(s.delay + slack)
	t := time.NewTimer(s.delay)
	defer t.Stop()
	s.delay = min(2*s.delay, s.MaxRestartDelay)
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// stop ends the child: it asks, waits, kills.
func (s *supervisor) stop(c *child) {
	s.Service.Well(s.StopTimeout + slack)
	c.terminate()
	t := time.NewTimer(s.StopTimeout)
	defer t.Stop()
	select {
	case <-c.exited:
	case <-t.C:
		s.log.Warn("agent does not stop; killing it", "pid", c.pid, "timeout", s.StopTimeout)
		c.kill()
		<-c.exited
	}
}

// recover deals with what an earlier supervisor left behind: a marker means that
// it ended before the trial did. The error paths log only: whatever is wrong
// with these files, the installed binary has to run.
func (s *supervisor) recover() {
	if err := install.SweepLeftovers(s.Installed); err != nil {
		s.log.Warn("sweep leftovers of a swap", "error", err)
	}
	if err := install.SweepActive(s.DataDir); err != nil {
		s.log.Warn("sweep leftovers in the data directory", "error", err)
	}
	m, err := s.loadMarker()
	if err != nil {
		return
	}
	if s.committed(m) {
		s.log.Info("the swap was done before the power failed; finishing the commit", "job", m.JobID, "release", m.Version)
		s.settle(m, install.OutcomeOf(m, install.Committed, time.Now()))
		return
	}
	o := install.OutcomeOf(m, install.Interrupted, time.Now())
	o.Reason = "interrupted: the host or its supervisor stopped before version " + m.Version + " had proved itself; start the update again"
	s.log.Warn("a trial was interrupted; running the installed binary", "job", m.JobID, "release", m.Version)
	s.settle(m, o)
}

// committed tells by what is on disk whether a trial's binary took its place.
func (s *supervisor) committed(m install.Marker) bool {
	if m.Place == install.InData {
		a, err := install.LoadActive(s.DataDir)
		if err != nil && !errors.Is(err, install.ErrNoActive) {
			s.log.Error("read which binary is active", "error", err)
		}
		return err == nil && a.Digest == m.Digest
	}
	installed, err := install.Digest(s.Installed)
	if err != nil {
		s.log.Error("hash installed binary", "error", err)
	}
	return installed == m.Digest
}

// loadMarker returns the marker; one that is corrupt is set aside.
func (s *supervisor) loadMarker() (install.Marker, error) {
	m, err := install.LoadMarker(s.DataDir)
	switch {
	case err == nil, errors.Is(err, install.ErrNoMarker):
	case errors.Is(err, install.ErrCorruptMarker):
		s.log.Error("the trial marker cannot be trusted; running the installed binary", "error", err)
		if err := install.SetCorruptMarkerAside(s.DataDir); err != nil {
			s.log.Error("set marker aside", "error", err)
		}
	default:
		s.log.Error("read trial marker", "error", err)
	}
	return m, err
}

// settle writes how the trial ended and removes its marker, in this order: after
// a crash between the two the marker tells the same story again.
func (s *supervisor) settle(m install.Marker, o install.Outcome) {
	if err := install.SaveVerdict(s.DataDir, o); err != nil {
		s.log.Error("save outcome", "job", m.JobID, "error", err)
	}
	if o.Result == install.RolledBack {
		f := install.Failure{JobID: m.JobID, Digest: m.Digest, Reason: o.Reason, At: o.At}
		if err := install.RememberFailure(s.DataDir, f); err != nil {
			s.log.Error("remember failed digest", "job", m.JobID, "error", err)
		}
	}
	if err := install.RemoveMarker(s.DataDir); err != nil {
		s.log.Error("remove trial marker", "job", m.JobID, "error", err)
	}
}
