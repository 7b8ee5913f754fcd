package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
)

// removalSteps take away what installSteps made. What a package brought stays: its
// own tools remove that.
func removalSteps(p servicePlan) ([]installStep, error) {
	vendor := vendorUnit(p.role)
	steps := []installStep{stopStep(p.role)}
	if vendor == "" || fileExists(filepath.Join(unitDir, unitName(p.role))) {
		s := removeStep(filepath.Join(unitDir, unitName(p.role)))
		remove := s.do
		s.do = func(ctx context.Context) error {
			if err := remove(ctx); err != nil {
				return err
			}
			return reloadSystemd(ctx)
		}
		steps = append(steps, s)
	}
	if !p.purge {
		return steps, nil
	}
	if err := errors.Join(refuseToPurge(p.data), refuseOthersData(p)); err != nil {
		return nil, err
	}
	steps = append(steps, removeStep(p.data))
	if vendor != "" {
		return steps, nil // the package's are its configuration and its program
	}
	steps = append(steps, removeStep(p.config))
	if other := otherRole(p.role); !fileExists(filepath.Join(unitDir, unitName(other))) {
		keys, _ := filepath.Glob(filepath.Join(filepath.Dir(p.config), "*.pub"))
		for _, key := range keys {
			steps = append(steps, removeStep(key))
		}
		steps = append(steps, removeEmptyStep(filepath.Dir(p.config)))
		if p.user == serviceUser { // another one was somebody's before
			steps = append(steps, removeAccountStep(p.user))
		}
		if p.binary == usualBinary {
			steps = append(steps, removeStep(usualBinary), removeStep(usualBinary+".old"))
		}
	}
	return steps, nil
}

func otherRole(role string) string {
	if role == roleAgent {
		return roleServer
	}
	return roleAgent
}

// refuseToPurge refuses a directory that is not a data directory of moult's: what
// the configuration names is removed with all that is in it.
func refuseToPurge(data string) error {
	entries, err := os.ReadDir(data)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range []string{"identity", runningFile, joinTokenFile, bootstrapOnceFile} { // not lock: /var has one
		if fileExists(filepath.Join(data, name)) {
			return nil
		}
	}
	return fmt.Errorf("%s does not look like moult's data directory; remove it by hand, if it is", data)
}

// stopStep stops and disables the service; one that is not known is stopped.
func stopStep(role string) installStep {
	name := unitName(role)
	return installStep{
		what: "stop and disable " + name,
		done: func() (bool, error) {
			if !bootedWithSystemd() {
				return true, nil
			}
			active, enabled := systemctlSays("is-active", role), systemctlSays("is-enabled", role)
			return (active == "inactive" || active == "unknown" || active == "") && enabled != "enabled", nil
		},
		do: func(ctx context.Context) error {
			if err := runQuietly(ctx, "systemctl", "disable", "--now", name); err != nil {
				return err
			}
			// A unit that failed would be listed after its removal too.
			_ = exec.CommandContext(ctx, "systemctl", "reset-failed", name).Run() // an error says that it had not failed
			return nil
		},
	}
}

// removeAccountStep removes the account that installing made.
func removeAccountStep(name string) installStep {
	return installStep{
		what: "remove account " + name,
		done: func() (bool, error) {
			_, err := user.Lookup(name)
			var unknown user.UnknownUserError
			return errors.As(err, &unknown), nil
		},
		do: func(ctx context.Context) error {
			err := runQuietly(ctx, "userdel", name)
			if err != nil && strings.Contains(err.Error(), "executable file not found") {
				return fmt.Errorf("%w; install the package passwd, or remove the account by hand", err)
			}
			return err
		},
	}
}
