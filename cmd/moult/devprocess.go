package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"moult/cmd/internal/nodekit"
)

// devStopTimeout is how long a process of `moult dev` may take to end by itself.
const devStopTimeout = 15 * time.Second

// devProcess is one child of `moult dev`. Its output goes to DIR/NAME/log.
type devProcess struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// startDevProcess starts a child that ends when this process does. The thread
// that starts it stays until it ends: Linux ties the two together.
func startDevProcess(name, dir, binary string, args []string) (*devProcess, error) {
	logPath := filepath.Join(dir, "log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &devProcess{name: name, log: logPath, done: make(chan struct{})}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), "MOULT_ANY_DATA_PATH=true") // wherever somebody tries it out; by no flag, which older versions would refuse
	endWithParent(p.cmd)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = p.cmd.Wait() // told by state()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	pid := fmt.Appendf(nil, "%d\n", p.cmd.Process.Pid)
	if err := nodekit.WriteFileAtomic(filepath.Join(dir, "pid"), pid, 0o600); err != nil {
		p.terminate()
		return nil, err
	}
	return p, nil
}

func (p *devProcess) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// state tells how the process ended; only after it did.
func (p *devProcess) state() string { return p.cmd.ProcessState.String() }

// lastOutput returns the end of the log.
func (p *devProcess) lastOutput() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

func (p *devProcess) terminate() {
	if !p.ended() {
		_ = terminateProcess(p.cmd.Process)
	}
}

// awaitEnd waits for the end, and forces it when it takes too long.
func (p *devProcess) awaitEnd() {
	select {
	case <-p.done:
	case <-time.After(devStopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}
