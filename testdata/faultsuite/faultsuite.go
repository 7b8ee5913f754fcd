// Package faultsuite is what the rows of the fault suite have in common, whichever
// package's tests they are: which of them run, how often, from which seed, and how
// a row is printed. `make test` runs a cycle or two of each row, `make faults` as
// many as docs/faults.md says.
//
// The environment cuts a long run in pieces and repeats one:
//
//	MOULT_FAULTS         set: the long form
//	MOULT_FAULTS_ROWS    rows to run, as parts of their names with commas between
//	MOULT_FAULTS_CYCLES  cycles of each row
//	MOULT_FAULTS_SEED    the seed of a run, to make the same choices again, as far
//	                     as processes allow that at all
package faultsuite

import (
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Row is one fault.
type Row struct {
	Name        string
	Long, Short int // cycles of `make faults` and of `make test`
}

// Long tells whether `make faults` runs.
func Long() bool { return os.Getenv("MOULT_FAULTS") != "" }

// Chosen tells whether MOULT_FAULTS_ROWS names the row, or nothing.
func (r Row) Chosen() bool {
	for part := range strings.SplitSeq(os.Getenv("MOULT_FAULTS_ROWS"), ",") {
		if strings.Contains(r.Name, strings.TrimSpace(part)) {
			return true
		}
	}
	return false
}

// MustBeChosen skips a test that is this row alone.
func (r Row) MustBeChosen(t testing.TB) {
	t.Helper()
	if !r.Chosen() {
		t.Skipf("MOULT_FAULTS_ROWS=%q does not name %q", os.Getenv("MOULT_FAULTS_ROWS"), r.Name)
	}
}

// Cycles is how many cycles the row has in this run.
func (r Row) Cycles(t testing.TB) int {
	t.Helper()
	if text := os.Getenv("MOULT_FAULTS_CYCLES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("MOULT_FAULTS_CYCLES=%q: give a whole number of cycles, at least 1", text)
		}
		return n
	}
	if Long() {
		return r.Long
	}
	return r.Short
}

var seed = sync.OnceValues(func() (uint64, error) {
	if text := os.Getenv("MOULT_FAULTS_SEED"); text != "" {
		return strconv.ParseUint(text, 10, 64)
	}
	return uint64(time.Now().UnixNano()), nil
})

// Rand makes the row's choices: its own, whatever rows run before. It prints the
// seed that makes them again.
func (r Row) Rand(t testing.TB) *rand.Rand {
	t.Helper()
	s, err := seed()
	if err != nil {
		t.Fatalf("MOULT_FAULTS_SEED: %v; give the number that a run has printed", err)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(r.Name)) // it never fails
	t.Logf("%s: MOULT_FAULTS_SEED=%d", r.Name, s)
	return rand.New(rand.NewPCG(s, h.Sum64()))
}

// Count is what a row comes to.
type Count struct {
	Cycles, Acked, Lost, Divergent int
	Gap, Update                    time.Duration // the longest without an acknowledged write; the longest fleet update
}

// reportEvery is how many cycles lie between two signs of life of a long row.
const reportEvery = 10

// Progress prints how far a long row is, now and again.
func (r Row) Progress(t testing.TB, c Count, of int) {
	t.Helper()
	if c.Cycles%reportEvery == 0 && c.Cycles < of {
		t.Logf("%s: %d of %d cycles, %d writes acknowledged", r.Name, c.Cycles, of, c.Acked)
	}
}

// Print prints the row.
func (r Row) Print(t testing.TB, c Count) {
	t.Helper()
	t.Logf("%-40s %6s %8s %5s %9s %12s %14s", "fault", "cycles", "acked", "lost", "divergent", "longest gap", "longest update")
	t.Logf("%-40s %6d %8d %5d %9d %12v %14v", r.Name, c.Cycles, c.Acked, c.Lost, c.Divergent, c.Gap.Round(time.Millisecond), c.Update.Round(time.Millisecond))
}
