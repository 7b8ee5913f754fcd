package updater

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"moult/updater/install"
)

// The environment of a supervised agent.
const (
	envSupervised   = "MOULT_SUPERVISED"       // "1"
	envPipes        = "MOULT_SUPERVISOR_PIPES" // "READ,WRITE"
	envTrial        = "MOULT_TRIAL"            // "1": on trial
	envVerifiedFile = "MOULT_TRIAL_FILE"       // descriptor of the file that is executed
	envTrialDigest  = "MOULT_TRIAL_DIGEST"     // its sha256, 64 hex digits
)

// message is one line between parent and child.
type message struct {
	Event   string `json:"event"`
	Version string `json:"version,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Status  string `json:"status,omitempty"`
}

const (
	eventJoined     = "joined"
	eventCommitted  = "committed"
	eventFailing    = "failing"    // it has failed, and is about to end
	eventServing    = "serving"    // its ports are open
	eventRestarting = "restarting" // the marker of a trial is on disk; it leaves the mesh, then ends
	eventAlive      = "alive"      // every SignOfLife, with a status
	eventStop       = "stop"       // Windows has no signals; the pipe's end says the same, to older children too
	// maxMessage bounds a line from a child that may be broken.
	maxMessage = 64 << 10
	// pumpBytes is what is taken of a child's output at once, for as long as it lives.
	pumpBytes = 4 << 10
	// lastWords is how long what an agent printed at its end is read on where a process of
	// its own still holds the pipe: more than a busy host stands still.
	lastWords = 2 * time.Second
)

// child is a running agent.
type child struct {
	proc  *os.Process
	pid   int
	group group // ends what it started
	trial bool
	began time.Time

	send *os.File // messages to the child; its end tells the child to stop
	recv *os.File // messages from the child
	out  *os.File // what the child prints

	done install.Marker // of the trial that was committed; zero: none

	tail     *tail
	messages chan message
	exited   chan struct{} // closed when state is set and the output is read
	state    *os.ProcessState

	pumps   sync.WaitGroup
	pending []byte // of recv: the beginning of a message; owned by its pump
}

// startInstalled starts the installed binary, or the active one where this process
// is that.
func (s *supervisor) startInstalled() (*child, error) {
	s.Service.Well(startPatience)
	if s.Active {
		return s.startActive()
	}
	return s.start(nil, func(argv []string, attr *os.ProcAttr) (*os.Process, error) {
		return os.StartProcess(s.Installed, argv, attr)
	})
}

// startTrial starts the staged binary, verified through the descriptor that is
// executed.
func (s *supervisor) startTrial(m install.Marker) (*child, error) {
	f, err := s.openStaged(m)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := s.startVerified(f, envTrial+"=1", envTrialDigest+"="+m.Digest)
	if c != nil {
		c.trial = true
	}
	return c, err
}

// startVerified starts a file through the descriptor that it was verified by.
func (s *supervisor) startVerified(f *os.File, env ...string) (*child, error) {
	env = append(env, envVerifiedFile+"="+strconv.Itoa(verifiedFileNumber))
	return s.start(env, func(argv []string, attr *os.ProcAttr) (*os.Process, error) {
		p, _, err := install.StartVerified(f, argv, attr)
		return p, err
	})
}

// start makes the pipes and starts a child on them.
func (s *supervisor) start(env []string, start func([]string, *os.ProcAttr) (*os.Process, error)) (_ *child, err error) {
	var files []*os.File
	defer func() {
		if err != nil {
			closeAll(files...)
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
			files = append(files, r, w)
		}
		return r, w
	}
	childIn, send := pipe()
	recv, childOut := pipe()
	out, childPrint := pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipes: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &os.ProcAttr{Env: s.childEnv(env), Files: []*os.File{null, childPrint, childPrint}, Sys: childAttributes()}
	if err := inherit(attr, childIn, childOut); err != nil {
		return nil, fmt.Errorf("pass pipes on: %w", err)
	}
	p, err := start(append([]string{s.Installed}, s.Args...), attr)
	if err != nil {
		return nil, err
	}
	// The child's ends are its own now: held here as well, they would never end.
	closeAll(childIn, childOut, childPrint)
	c := &child{proc: p, pid: p.Pid, group: s.groupOf(p), send: send, recv: recv, out: out}
	s.watchOver(c)
	return c, nil
}

// childEnv is the configured environment without an outer supervisor's words, and
// without the way to the service manager.
func (s *supervisor) childEnv(extra []string) []string {
	var env []string
	for _, kv := range s.Env {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID": // the service manager hears the supervisor alone
		case envSupervised, envPipes, envTrial, envVerifiedFile, envTrialDigest, envHandover, envHandedOver:
		default:
			env = append(env, kv)
		}
	}
	return append(append(env, envSupervised+"=1"), extra...)
}

// watchOver starts reading what the child says and prints, and waits for its end.
func (s *supervisor) watchOver(c *child) {
	c.began = time.Now()
	if c.tail == nil {
		c.tail = newTail(s.Output)
	}
	c.messages = make(chan message, 16)
	c.exited = make(chan struct{})
	c.startPumps()
	go func() {
		state, err := c.proc.Wait()
		if err != nil {
			s.log.Error("wait for agent", "pid", c.pid, "error", err)
		}
		c.killGroup() // what it left behind would hold its pipes, and its port
		soon := time.Now().Add(lastWords)
		_, _ = c.out.SetReadDeadline(soon), c.recv.SetReadDeadline(soon)
		c.pumps.Wait()
		closeAll(c.send, c.recv, c.out)
		c.freeGroup()
		c.state = state
		close(c.exited)
	}()
}

// startPumps reads both pipes until they end or their read deadline passes.
func (c *child) startPumps() {
	c.pumps.Go(func() { _, _ = io.CopyBuffer(c.tail, struct{ io.Reader }{c.out}, make([]byte, pumpBytes)) })
	c.pumps.Go(c.readMessages)
}

// readMessages takes the child's lines apart. Lines that do not parse, and those
// nobody waits for, are dropped: a child must not be able to block its parent.
func (c *child) readMessages() {
	buf := make([]byte, 1024)
	var last message // and its line: signs of life repeat
	var lastLine []byte
	for {
		n, err := c.recv.Read(buf)
		c.pending = append(c.pending, buf[:n]...)
		for {
			line, rest, found := bytes.Cut(c.pending, []byte("\n"))
			if !found {
				break
			}
			if !bytes.Equal(line, lastLine) {
				var m message
				if json.Unmarshal(line, &m) != nil {
					m = message{}
				}
				last, lastLine = m, bytes.Clone(line)
			}
			c.pending = rest
			if last != (message{}) {
				select {
				case c.messages <- last:
				default:
				}
			}
		}
		if len(c.pending) == 0 || len(c.pending) > maxMessage {
			c.pending = nil
		}
		if err != nil {
			return
		}
	}
}

// say sends a message to the child.
func (c *child) say(m message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	// A child that does not read must not hold its supervisor.
	if err := c.send.SetWriteDeadline(time.Now().Add(time.Second)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return err
	}
	_, err = c.send.Write(append(b, '\n'))
	return err
}

// kill ends the child and what it started, at once.
func (c *child) kill() {
	c.killGroup()
	_ = c.proc.Kill() // an error means that it has ended
}

// ending says how the child ended: "exit status 1: LAST LINE".
func (c *child) ending() string {
	how := "ended in an unknown way"
	if c.state != nil {
		how = c.state.String()
	}
	return how + colon(c.tail.last())
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		f.Close()
	}
}
