// Package install puts a new binary in the place of the installed one, after it
// has proved itself. Package updater calls it: the agent for Preflight and the
// trial marker, its supervisor for the trial itself and for Swap.
//
// The order of things is
//
//	Preflight    can this host run the staged binary, and would a swap fit
//	Marker       DATA/trial.json: a trial is due, or under way
//	OpenVerified the staged file, hashed through the descriptor that is executed
//	Swap         staged becomes installed; the installed one is kept as .old
//	Outcome      DATA/last-job.json: how the last job ended
//	Failures     DATA/failed.json: digests that were rolled back
//
// Promises: the installed path always holds a complete binary, whatever step
// the power failed at; mode, owner and extended attributes (capabilities)
// survive a swap; no file under its final name is half written. Every file in
// the data directory is written beside its name, synced, renamed and the
// directory synced. Nothing here is safe for concurrent use on the same data
// directory, except that the agent and its supervisor take turns: the agent
// writes the marker and exits, the supervisor reads it.
//
// Errors name the next step for the operator.
package install

import "errors"

// Errors of this package.
var (
	// ErrNoMarker: no trial is due.
	ErrNoMarker = errors.New("no trial marker")
	// ErrCorruptMarker: the marker does not parse or its checksum is wrong. Keep
	// running what runs.
	ErrCorruptMarker = errors.New("trial marker is corrupt")
	// ErrNoOutcome: no job has ended on this host.
	ErrNoOutcome = errors.New("no job outcome")
	// ErrDigest: a file's bytes are not those that were verified before.
	ErrDigest = errors.New("file does not match its digest")
	// ErrPreflight: this host cannot run or install the staged binary. The
	// wrapping error says why and what to do.
	ErrPreflight = errors.New("preflight")
	// ErrInUse: another program has a file open that is to be renamed (Windows).
	ErrInUse = errors.New("another program has the file open")
)
