package updater

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"moult/updater/install"
)

// SettleTrial deals with what an earlier process left behind that ended in the
// middle of a trial. A program that has no supervisor in ordinary times, as a
// server, calls it before it starts its work; RunSupervisor does it by itself.
func SettleTrial(cfg SupervisorConfig) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	supervisorOf(cfg).recover()
	return nil
}

// RunTrial is for such a program whose Updater has ended with ErrRestart: this
// process becomes the supervisor of the one trial that is due. It returns when
// the trial has ended, with no child left, and whether the staged binary is the
// installed one now. Either way the caller goes on by executing the installed
// binary in its own place. When ctx ends, the trial does.
//
// The trial is not told of its commit, so it shows itself on trial to its end:
// who takes its place says how the job ended. Otherwise others would take the
// host for done while it is about to restart once more.
//
// Call it once what the program holds (ports, files) is free: the trial needs
// the same.
func RunTrial(ctx context.Context, cfg SupervisorConfig) (committed bool, err error) {
	if err := cfg.validate(); err != nil {
		return false, err
	}
	runtime.LockOSThread() // see RunSupervisor
	defer runtime.UnlockOSThread()
	s := supervisorOf(cfg)
	s.alone = true
	defer s.side.flush(flushOutput)
	c := s.tryStaged(ctx)
	if c == nil {
		return false, nil
	}
	s.stop(c)
	return true, nil
}

// ReplaceSelf executes the installed binary in this process's place, with the
// same arguments and process id. It returns only when that fails.
func ReplaceSelf(installed string) error {
	return fmt.Errorf("become the installed binary %s: %w; start it again", installed, execute(installed))
}

// SettleRolledBack is for whoever was to finish a commit that the supervisor left
// to it (SupervisorConfig.Restart), and cannot.
func SettleRolledBack(dataDir string, m install.Marker, reason string) error {
	o := install.OutcomeOf(m, install.RolledBack, time.Now())
	o.Reason = reason
	return errors.Join(install.SaveVerdict(dataDir, o), install.RemoveMarker(dataDir))
}
