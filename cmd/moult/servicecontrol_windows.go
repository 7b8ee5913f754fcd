package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

// serviceProbation is for how long a service that was started is looked at.
const serviceProbation = 3 * time.Second

// stopService asks a service to stop and waits until it has and its process is gone:
// only then are its files free.
func stopService(ctx context.Context, s *mgr.Service) error {
	st, err := s.Query()
	if err != nil {
		return fmt.Errorf("query service %s: %w", s.Name, err)
	}
	if st.State == svc.Stopped {
		return nil
	}
	process, err := windows.OpenProcess(windows.SYNCHRONIZE, false, st.ProcessId)
	if err == nil {
		defer func() { _ = windows.CloseHandle(process) }()
	}
	if st.State != svc.StopPending {
		if _, err := s.Control(svc.Stop); err != nil && !errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
			return fmt.Errorf("stop service %s: %w", s.Name, err)
		}
	}
	if err := awaitState(ctx, s, svc.Stopped, serviceStopTimeout+10*time.Second); err != nil {
		return err
	}
	if process != 0 {
		// An error, or its time being over: whoever wants the files will see.
		_, _ = windows.WaitForSingleObject(process, uint32((10 * time.Second).Milliseconds()))
	}
	return nil
}

// startService starts a service and waits until it runs, and for a moment more.
func startService(ctx context.Context, s *mgr.Service) error {
	for began := time.Now(); ; {
		err := s.Start()
		if err == nil || errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
			break
		}
		// Locked: the machine is still starting services.
		if !errors.Is(err, windows.ERROR_SERVICE_DATABASE_LOCKED) || time.Since(began) > serviceStartTimeout {
			return fmt.Errorf("start service %s: %w", s.Name, err)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	if err := awaitState(ctx, s, svc.Running, serviceStartTimeout); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < serviceProbation; {
		st, err := s.Query()
		if err != nil {
			return fmt.Errorf("query service %s: %w", s.Name, err)
		}
		if st.State == svc.Stopped {
			return fmt.Errorf("service %s ended at once, with exit code %d/%d", s.Name, st.Win32ExitCode, st.ServiceSpecificExitCode)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

func awaitState(ctx context.Context, s *mgr.Service, want svc.State, patience time.Duration) error {
	for began := time.Now(); ; {
		st, err := s.Query()
		if err != nil {
			return fmt.Errorf("query service %s: %w", s.Name, err)
		}
		if st.State == want {
			return nil
		}
		if want == svc.Running && st.State == svc.Stopped {
			return fmt.Errorf("service %s ended at once, with exit code %d/%d", s.Name, st.Win32ExitCode, st.ServiceSpecificExitCode)
		}
		if time.Since(began) > patience {
			return fmt.Errorf("service %s is in state %d after %v, not in %d; look at it with sc.exe query %s", s.Name, st.State, patience, want, s.Name)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context) error {
	t := time.NewTimer(servicePollInterval)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
