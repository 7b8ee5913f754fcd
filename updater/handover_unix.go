//go:build unix

package updater

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"moult/updater/install"
)

// handover is what the next supervisor needs to go on with a running child.
type handover struct {
	PID     int    `json:"pid"`
	Send    int    `json:"send"` // descriptors
	Recv    int    `json:"recv"`
	Out     int    `json:"out"`
	Pending []byte `json:"pending,omitempty"` // the beginning of a message
}

// handOver replaces this process by the newly installed binary, which adopts the
// running child: same process id, same child, new supervisor. When exec fails
// this process goes on. It runs on the thread that started the child, which
// becomes the new program's first thread: ending any other thread would be taken
// for the parent's death.
//
// A request to stop is not lost: what came before is noted, and what comes later ends
// this process, and the child with it.
func (s *supervisor) handOver(ctx context.Context, c *child) *child {
	c.stopPumps()
	fds := []int{descriptor(c.send), descriptor(c.recv), descriptor(c.out)}
	state, err := json.Marshal(handover{PID: c.pid, Send: fds[0], Recv: fds[1], Out: fds[2], Pending: c.pending})
	if err == nil {
		s.side.flush(flushOutput)
		leaveToKernel(syscall.SIGINT, syscall.SIGTERM)
		time.Sleep(signalDelay)
		signal.Stop(s.asked) // returns when all that was caught is delivered
		signal.Reset(os.Interrupt, syscall.SIGTERM)
		if len(s.asked) > 0 || ctx.Err() != nil {
			c.startPumps()
			return c
		}
		inheritAll(fds, true)
		err = s.executeInstalled(append(withoutHandover(os.Environ()), envHandover+"="+string(state)))
		inheritAll(fds, false)
	}
	s.log.Warn("the new binary does not take the supervisor over; this one goes on", "error", err)
	c.startPumps()
	return c
}

// signalDelay is how long a thread that was given a signal may take to come to it.
const signalDelay = 50 * time.Millisecond

func withoutHandover(env []string) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if !strings.HasPrefix(kv, envHandover+"=") && !strings.HasPrefix(kv, envHandedOver+"=") {
			out = append(out, kv)
		}
	}
	return out
}

// descriptor returns f's number without making it blocking, as Fd would.
func descriptor(f *os.File) int {
	fd := -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

func inheritAll(fds []int, inherit bool) {
	flags := unix.FD_CLOEXEC
	if inherit {
		flags = 0
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
	}
}

// adopt takes over the child of the supervisor that this process was before
// exec, or returns nil.
func (s *supervisor) adopt() *child {
	text, found := os.LookupEnv(envHandover)
	if !found {
		return nil
	}
	_ = os.Unsetenv(envHandover)
	var h handover
	if err := json.Unmarshal([]byte(text), &h); err != nil || h.PID <= 1 || h.Send < 3 || h.Recv < 3 || h.Out < 3 {
		s.log.Error("handover does not parse; starting afresh", "error", err)
		return nil
	}
	c := &child{
		pid: h.PID, pending: h.Pending,
		send: inheritedPipe(uintptr(h.Send), "agent"),
		recv: inheritedPipe(uintptr(h.Recv), "agent"),
		out:  inheritedPipe(uintptr(h.Out), "agent"),
	}
	var err error
	if c.proc, err = livingChild(h.PID); err != nil {
		s.log.Error("the handed over agent is gone; starting afresh", "pid", h.PID, "error", err)
		closeAll(c.send, c.recv, c.out)
		return nil
	}
	s.watchOver(c)
	s.log.Info("took the running agent over", "pid", h.PID)
	return c
}

// livingChild finds a child of this process. What one that has ended left behind
// is ended too: it would hold the next one's port.
func livingChild(pid int) (*os.Process, error) {
	ended, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	if err != nil {
		return nil, fmt.Errorf("it is not this process's child: %w", err)
	}
	if ended == pid {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		return nil, errors.New("it has ended")
	}
	return os.FindProcess(pid)
}

// leaveSwap is Windows': elsewhere a running binary can be renamed.
func (s *supervisor) leaveSwap(_ context.Context, _ *child, _ install.Marker, inUse error) error {
	return fmt.Errorf("install: %w", inUse)
}

// executeInstalled becomes the binary that was just committed.
func (s *supervisor) executeInstalled(env []string) error {
	if !s.Active {
		return executePath(s.Installed, env)
	}
	f, a, err := openActive(s.DataDir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := install.CountStart(s.DataDir, a.Digest); err != nil {
		s.log.Warn("count the starts of the active binary", "error", err)
	}
	return executeActive(f, s.Installed, env)
}

// stopPumps makes the pumps return with nothing lost: what is in the pipes
// stays there.
func (c *child) stopPumps() {
	past := time.Unix(1, 0)
	_, _ = c.out.SetReadDeadline(past), c.recv.SetReadDeadline(past)
	c.pumps.Wait()
	_, _ = c.out.SetReadDeadline(time.Time{}), c.recv.SetReadDeadline(time.Time{})
}
