package updater

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// SupervisorLink is the agent's end of the line to its supervisor. Safe for
// concurrent use.
type SupervisorLink struct {
	trial     bool
	digest    string // of the file that is on trial, as the supervisor verified it
	committed chan struct{}
	gone      chan struct{}
	recv      *os.File
	asked     atomic.Bool // before gone: the supervisor asked this process to stop

	mu     sync.Mutex
	send   *os.File
	status string // that was told last
	alive  []byte // the message that told it
}

// Supervised tells whether this process is a supervisor's child, and returns its
// line to it. Call it once, first thing: it takes the environment variables away,
// so that what the agent starts does not take itself for an agent. A child whose
// pipes are unusable is told so by ParentGone at once.
func Supervised() (*SupervisorLink, bool) {
	if os.Getenv(envSupervised) != "1" {
		return nil, false
	}
	pipes, trial, file := os.Getenv(envPipes), os.Getenv(envTrial) == "1", os.Getenv(envVerifiedFile)
	digest := ""
	if trial {
		digest = os.Getenv(envTrialDigest)
	}
	for _, name := range []string{envSupervised, envPipes, envTrial, envVerifiedFile, envTrialDigest, envHandover, envHandedOver} {
		_ = os.Unsetenv(name)
	}
	if file != "" {
		closeVerifiedFile(file)
	}
	l := &SupervisorLink{trial: trial, digest: digest, committed: make(chan struct{}), gone: make(chan struct{})}
	recv, send, err := openPipes(pipes)
	if err != nil {
		close(l.gone)
		return l, true
	}
	l.recv, l.send = recv, send
	go l.read()
	return l, true
}

// InstalledPath returns where this program is installed. A child is told by its
// supervisor, and the active binary by the packaged one: they are executed from
// elsewhere. Call it before Supervised and BeginActive.
func InstalledPath() (string, error) {
	if os.Getenv(envSupervised) == "1" && len(os.Args) > 0 {
		return os.Args[0], nil
	}
	if packaged, ok := handedOver(); ok {
		return packaged, nil
	}
	return os.Executable()
}

func openPipes(numbers string) (recv, send *os.File, err error) {
	r, w, ok := strings.Cut(numbers, ",")
	if !ok {
		return nil, nil, fmt.Errorf("%s is %q", envPipes, numbers)
	}
	rn, err := strconv.ParseUint(r, 10, 63)
	if err != nil {
		return nil, nil, err
	}
	wn, err := strconv.ParseUint(w, 10, 63)
	if err != nil {
		return nil, nil, err
	}
	return inheritedPipe(uintptr(rn), "supervisor"), inheritedPipe(uintptr(wn), "supervisor"), nil
}

// read takes the parent's messages until the pipe ends.
func (l *SupervisorLink) read() {
	defer close(l.gone)
	committed := false
	lines := bufio.NewScanner(l.recv)
	for lines.Scan() {
		var m message
		if json.Unmarshal(lines.Bytes(), &m) != nil {
			continue
		}
		switch {
		case m.Event == eventCommitted && !committed:
			committed = true
			close(l.committed)
		case m.Event == eventStop:
			l.asked.Store(true)
			return
		}
	}
}

// OnTrial tells whether this process was started on trial.
func (l *SupervisorLink) OnTrial() bool { return l.trial }

// Digest is the sha256 of this process's binary, 64 hex digits, where the supervisor
// has just verified it: on trial. Else it is empty.
func (l *SupervisorLink) Digest() string { return l.digest }

// Restarting tells the supervisor that the marker of a trial is on disk and that this
// process is about to end for it.
func (l *SupervisorLink) Restarting() error { return l.say(message{Event: eventRestarting}) }

// Joined tells the supervisor that a live peer answered, and what this process
// is: its version and the sha256 of its binary in hex.
func (l *SupervisorLink) Joined(version, digest string) error {
	return l.say(message{Event: eventJoined, Version: version, Digest: digest})
}

// Failing tells the supervisor that this process has failed and is about to end: it
// is not committed in the time that its end takes.
func (l *SupervisorLink) Failing() error { return l.say(message{Event: eventFailing}) }

// Serving tells the supervisor that this process's ports are open.
func (l *SupervisorLink) Serving() error { return l.say(message{Event: eventServing}) }

// Alive tells the supervisor that this process works, with a line for people. A
// supervisor that is told for the first time expects it every SignOfLife.
func (l *SupervisorLink) Alive(status string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alive == nil || l.status != status { // it is said every few seconds, and mostly the same
		line, err := lineOf(message{Event: eventAlive, Status: status})
		if err != nil {
			return err
		}
		l.status, l.alive = status, line
	}
	return l.write(l.alive)
}

func (l *SupervisorLink) say(m message) error {
	line, err := lineOf(m)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.write(line)
}

func lineOf(m message) ([]byte, error) {
	b, err := json.Marshal(m)
	return append(b, '\n'), err
}

// write sends a line; mu is held.
func (l *SupervisorLink) write(line []byte) error {
	if l.send == nil {
		return fmt.Errorf("tell supervisor: %w", os.ErrClosed)
	}
	if _, err := l.send.Write(line); err != nil {
		return fmt.Errorf("tell supervisor: %w", err)
	}
	return nil
}

// Committed is closed when a trial has become the installed binary.
func (l *SupervisorLink) Committed() <-chan struct{} { return l.committed }

// ParentGone is closed when the supervisor has ended, or wants this process to:
// stop.
func (l *SupervisorLink) ParentGone() <-chan struct{} { return l.gone }

// StopAsked tells, once ParentGone is closed, whether the supervisor asked for
// it; else it has ended.
func (l *SupervisorLink) StopAsked() bool { return l.asked.Load() }

// Close ends the line; ParentGone is closed soon after.
func (l *SupervisorLink) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.send == nil {
		return nil
	}
	err := l.send.Close()
	l.send = nil
	l.recv.Close()
	return err
}
