package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"

	"moult/cmd/internal/nodekit"
)

// serviceName is a role's name in the service manager and in the event log.
func serviceName(role string) string { return "moult-" + role }

// serviceStopTimeout is how long a service may take to stop: its supervisor's
// patience with the agent, and some.
const serviceStopTimeout = 20 * time.Second

// start runs the command line of this process; as a service, when the service
// manager has started it.
func start(ctx context.Context, args []string) int {
	if startedByServiceManager() {
		s := &service{args: args}
		// The name counts for services that share a process only.
		err := svc.Run(serviceName(roleAgent), s)
		if err == nil {
			return s.code
		}
		if !errors.Is(err, windows.ERROR_FAILED_SERVICE_CONTROLLER_CONNECT) {
			return 1 // there is nobody to tell why
		}
	}
	return run(ctx, args, os.Stdin, os.Stdout, os.Stderr)
}

// startedByServiceManager tells whether the parent calls itself services.exe. Unlike
// svc.IsWindowsService it does not ask for session 0, which Wine does not have. One
// that is not the service manager does not answer svc.Run.
func startedByServiceManager() bool {
	processes, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return false
	}
	defer func() { _ = windows.CloseHandle(processes) }()
	var entry windows.ProcessEntry32
	entry.Size = uint32(unsafe.Sizeof(entry))
	names, parent := map[uint32]string{}, uint32(0)
	for err := windows.Process32First(processes, &entry); err == nil; err = windows.Process32Next(processes, &entry) {
		names[entry.ProcessID] = windows.UTF16ToString(entry.ExeFile[:])
		if entry.ProcessID == windows.GetCurrentProcessId() {
			parent = entry.ParentProcessID
		}
	}
	return strings.EqualFold(names[parent], "services.exe")
}

// service runs a command line between the service manager's start and stop.
type service struct {
	args []string
	code int
}

// serviceKey is the context's key for the name of the service that runs.
type serviceKey struct{}

// Execute is called by package svc. The service is Running as soon as its
// supervisor does; whether the host has joined is in the log and in `moult hosts`.
func (s *service) Execute(args []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, exitCode uint32) {
	status <- svc.Status{State: svc.StartPending}
	name := serviceName(roleAgent)
	if len(args) > 0 {
		name = args[0]
	}
	output, closeOutput := serviceOutput(name)
	defer closeOutput()
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), serviceKey{}, name))
	defer cancel()
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, s.args, strings.NewReader(""), output, output) }()

	const accepts = svc.AcceptStop | svc.AcceptShutdown
	status <- svc.Status{State: svc.Running, Accepts: accepts}
	for {
		select {
		case s.code = <-ended:
			return s.code != 0, uint32(s.code)
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown:
				cancel()
				s.code = awaitEnd(ended, status, output)
				return s.code != 0, uint32(s.code)
			}
		}
	}
}

// awaitEnd tells the service manager that the service is stopping until it has,
// or has had its time: then the end of this process ends what is left.
func awaitEnd(ended <-chan int, status chan<- svc.Status, output io.Writer) int {
	deadline := time.NewTimer(serviceStopTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for checkpoint := uint32(1); ; checkpoint++ {
		status <- svc.Status{State: svc.StopPending, CheckPoint: checkpoint, WaitHint: uint32(serviceStopTimeout.Milliseconds())}
		select {
		case code := <-ended:
			return code
		case <-deadline.C:
			fmt.Fprintf(output, "moult: the service did not stop within %v; it is ended\n", serviceStopTimeout)
			return 1
		case <-tick.C:
		}
	}
}

// maxServiceLog is how long, in bytes, the log of a service becomes before it is
// renamed to NAME.1, of which there is one.
const maxServiceLog = 10 << 20

// serviceOutput is where a service prints: a file, and for what an admin should
// see the event log. Without a file the event log has to do.
func serviceOutput(name string) (w io.Writer, closeAll func()) {
	var closers []io.Closer
	closeAll = func() {
		for _, c := range closers {
			c.Close()
		}
	}
	report := func(slog.Level, string) {}
	if events, err := eventlog.Open(name); err == nil {
		closers = append(closers, events)
		report = reportTo(events)
	}
	events := &eventLines{report: report}
	file, err := openRotatingFile(serviceLogPath(name), maxServiceLog)
	if err != nil {
		report(slog.LevelError, fmt.Sprintf("the log cannot be written: %v", err))
		return events, closeAll
	}
	closers = append(closers, file)
	return bothWriters{file, events}, closeAll
}

// serviceLogPath is where a service logs to.
func serviceLogPath(name string) string { return filepath.Join(nodekit.ProgramData(), name+".log") }

// The event ids that EventCreate.exe's messages know are 1 to 1000.
const (
	eventInfo    = 1
	eventWarning = 2
	eventError   = 3
)

func reportTo(events *eventlog.Log) eventReporter {
	return func(level slog.Level, text string) {
		// There is nobody to tell an error to but the log itself.
		switch {
		case level >= slog.LevelError:
			_ = events.Error(eventError, text)
		case level >= slog.LevelWarn:
			_ = events.Warning(eventWarning, text)
		default:
			_ = events.Info(eventInfo, text)
		}
	}
}

// bothWriters writes to each and gives up on neither: a full disk must not keep an
// error out of the event log.
type bothWriters struct {
	file, events interface{ Write([]byte) (int, error) }
}

func (w bothWriters) Write(p []byte) (int, error) {
	_, errFile := w.file.Write(p)
	_, errEvents := w.events.Write(p)
	if err := errors.Join(errFile, errEvents); err != nil {
		return 0, err
	}
	return len(p), nil
}
