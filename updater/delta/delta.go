// Package delta makes small patches between versions of an executable, and
// applies them.
//
// A publisher calls Make with two files that it has in memory. A host that holds
// the old file calls Apply with the patch as it comes in:
//
//	err := delta.Apply(ctx, oldFile, patch, delta.Target{OldDigest: running, NewDigest: signed, Length: size}, out)
//
// A patch is not trusted, and carries no signature: whoever applies one verifies
// the sha256 of what was written against the signed one before anything else
// becomes of it, as with bytes from any peer, and gets the whole file when that
// or Apply fails. Apply promises, whatever the patch says, that it writes no more
// than Target.Length bytes, reads no byte of the old file outside it, holds at
// most MaxApplyMemory bytes, and ends.
//
// It is bsdiff (Colin Percival, "Naive Differences of Executable Code", 2003)
// with one addition: before the differences are taken, both sides predict how
// the references in the copied code and tables have changed. DESIGN.md describes
// the format, and what was rejected.
package delta

import (
	"errors"
	"fmt"
)

// Limits. They are part of the format: what exceeds them is malformed.
const (
	// MaxFileLen is the largest file that a patch is made from or to, in bytes.
	MaxFileLen = 1 << 30
	// MaxApplyMemory is what Apply holds at most, in bytes, whatever the patch
	// says. Ordinary patches of a 22 MB binary need 8 MB.
	MaxApplyMemory = 64 << 20

	// makeBase and makePerByte are in MakeMemory.
	makeBase    = 64 << 20
	makePerByte = 4

	maxOps      = 1 << 18
	maxPlanLen  = 6 << 20   // bytes of the plan, before compression
	maxGroupLen = 1 << 20   // bytes of each stream of a group, before compression
	maxPacked   = 8 << 20   // bytes of anything compressed
	maxSegments = 32        // of an executable
	maxRegions  = 64        // of the old file
	maxFuncs    = 1 << 19   // of a Go executable whose records are predicted
	chunkLen    = 64 << 10  // bytes that are predicted at once
	groupLen    = 512 << 10 // bytes of all streams after which a group ends
)

var (
	// ErrMalformed: the patch is not one, or it is damaged.
	ErrMalformed = errors.New("the patch is malformed")
	// ErrVersion: the patch has a format that this version does not know.
	ErrVersion = errors.New("the patch has a format of another version")
	// ErrOtherFiles: the patch is none of the two files asked for.
	ErrOtherFiles = errors.New("the patch is of other files")
	// ErrTooLarge: a file is too large for a patch.
	ErrTooLarge = errors.New("the file is too large for a patch")
	// ErrTooDifferent: the files have too little in common for a patch.
	ErrTooDifferent = errors.New("the files are too different for a patch")
)

// MakeMemory is what Make holds at most for files of these lengths, in bytes, both
// files included: the sorted suffixes of the old one; later the compressor, and
// what the patch has before compression, of which there is little where a patch
// is of use.
func MakeMemory(old, new int64) int64 { return makeBase + makePerByte*old + old + new }

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}
