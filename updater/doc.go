// Package updater is the host's side of an update: the Updater, which runs in
// the agent and takes orders, and the supervisor, the agent's small parent, which
// tries a new binary and takes it back.
//
// cmd/moult calls it. `moult agent` runs RunSupervisor, which starts the same
// binary again with MOULT_SUPERVISED=1; that child finds its end of the line to
// the parent with Supervised, wires an Updater to the mesh and runs it. The
// package knows no mesh and no consensus: what it needs of them are the small
// interfaces of Config.
//
// # The course of one update
//
//	HandleOrder   a sealed order: opened, verified, fenced (order.Fence)
//	  fetching    manifest verified, artifact fetched from peers
//	  verifying   every byte hashed; only then has the file its final name
//	  preflight   room, rights, platform, `NEW version --json`
//	  restarting  the trial marker is on disk; Run returns ErrRestart
//	main leaves the mesh and exits with ExitRestart; the supervisor takes over
//	  trial       the staged file runs; it says joined, and stays up for the soak
//	  idle        swapped, committed; the job id stays in the record
//	  rolled_back or failed, with the reason in the report
//
// # Between parent and child
//
// Two pipes, whose descriptor numbers are in MOULT_SUPERVISOR_PIPES
// ("READ,WRITE" as the child sees them), carry one JSON object a line; unknown
// fields and events are ignored.
//
//	child  → parent  {"event":"joined","version":V,"digest":D}
//	child  → parent  {"event":"failing"}
//	parent → child   {"event":"committed"}
//
// The end of the parent's pipe means that the parent is gone: the child stops.
//
// # Files in the data directory
//
// trial.json, last-job.json and failed.json are package install's. trust.json
// holds the highest release number that was installed and the floor.
// job-log-JOB.jsonl is the job's log until the servers have it.
package updater

import "errors"

// Exit codes between the agent and its supervisor.
const (
	// ExitRestart: the trial marker is written; start the staged binary.
	ExitRestart = 75
	// ExitGiveUp: starting the agent again would not help (a refused token, a bad
	// setting). The supervisor ends with it.
	ExitGiveUp = 78
)

// Errors of this package.
var (
	// ErrRestart is what Updater.Run returns when a trial is due: leave the mesh,
	// then exit with ExitRestart.
	ErrRestart = errors.New("restart on trial")
	// ErrGaveUp is what RunSupervisor returns when the agent exited with ExitGiveUp.
	ErrGaveUp = errors.New("the agent gave up; its last output says why")
)
