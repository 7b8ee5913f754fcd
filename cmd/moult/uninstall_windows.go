package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/eventlog"
	"golang.org/x/sys/windows/svc/mgr"

	"moult/updater/install"
)

// removalSteps take away what installSteps made.
func removalSteps(p servicePlan) ([]installStep, error) {
	if p.role != roleAgent {
		return nil, checkPlan(p)
	}
	name := serviceName(p.role)
	if program := programOf(name); program != "" {
		p.binary = program
	}
	steps := []installStep{removeServiceStep(name), removeEventSourceStep(name)}
	if !p.purge {
		return steps, nil
	}
	if err := refuseToPurge(p.data); err != nil {
		return nil, err
	}
	steps = append(steps, removeStep(p.data), removeStep(p.config),
		removeStep(serviceLogPath(name)), removeStep(serviceLogPath(name)+".1"), removeStep(restartLogPath(name)),
		removeEmptyStep(filepath.Dir(p.config)))
	return append(steps, removeProgramStep(p.binary), removeEmptyStep(filepath.Dir(p.binary))), nil
}

// programOf is the program that a service runs, "" when it cannot be told.
func programOf(name string) (program string) {
	_ = withService(name, func(s *mgr.Service) error {
		line, _, err := registered(s)
		if err != nil {
			return err
		}
		if args, err := windows.DecomposeCommandLine(line); err == nil && len(args) > 0 {
			program = args[0]
		}
		return nil
	})
	return program
}

func removeServiceStep(name string) installStep {
	return installStep{
		what: "stop and remove service " + name,
		done: func() (bool, error) {
			err := withService(name, func(*mgr.Service) error { return nil })
			if errors.Is(err, errNoService) {
				return true, nil
			}
			return false, err
		},
		do: func(ctx context.Context) error {
			return withService(name, func(s *mgr.Service) error {
				if err := stopService(ctx, s); err != nil {
					return err
				}
				return s.Delete()
			})
		},
	}
}

func removeEventSourceStep(name string) installStep {
	s := eventSourceStep(name)
	known := s.done
	return installStep{
		what: "remove event source " + name,
		done: func() (bool, error) {
			is, err := known()
			return !is, err
		},
		do: func(context.Context) error {
			if err := eventlog.Remove(name); err != nil && !errors.Is(err, registry.ErrNotExist) {
				return err
			}
			return nil
		},
	}
}

// removeProgramStep removes the program and those that updates set aside. One that
// runs, as this one may, goes when the machine starts next.
func removeProgramStep(path string) installStep {
	s := removeStep(path)
	s.do = func(context.Context) error {
		aside, err := install.Asides(path)
		if err != nil {
			return err
		}
		var errs []error
		for _, file := range append(aside, path) {
			errs = append(errs, removeNowOrLater(file))
		}
		return errors.Join(errs...)
	}
	return s
}

func removeNowOrLater(path string) error {
	err := os.Remove(path)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	name, nameErr := windows.UTF16PtrFromString(path)
	if nameErr != nil {
		return nameErr
	}
	if later := windows.MoveFileEx(name, nil, windows.MOVEFILE_DELAY_UNTIL_REBOOT); later != nil {
		return fmt.Errorf("%w; remove it by hand", err)
	}
	return nil
}
