package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Limits of Preflight.
const (
	// SelfTestTimeout is how long `NEW version --json` may take.
	SelfTestTimeout = 10 * time.Second
	// maxSelfTestOutput is how much of its output is read; the rest is discarded.
	maxSelfTestOutput = 64 << 10
	// spareSpace is kept free in each directory beyond what is written: a full
	// disk harms more than a late update.
	spareSpace = 1 << 20
)

// PreflightRequest names a verified, staged binary and the place it is for.
type PreflightRequest struct {
	Staged    string // path of the staged binary
	Digest    string // its sha256, 64 hex digits
	Installed string // path of the installed binary
	DataDir   string // where marker, outcome and logs are written
	Version   string // what the binary has to say it is
	OS, Arch  string // this host's; empty: those this program was built for
	Wish      Place  // where it is to go; empty: AnyPlace
	Proof     *Proof // of what was found out ahead of this; nil: nothing
}

func (r *PreflightRequest) validate() error {
	if r.Staged == "" || r.Installed == "" || r.DataDir == "" || r.Version == "" || len(r.Digest) != 64 {
		return errors.New("preflight needs the staged and the installed path, the data directory, a version and a digest")
	}
	if r.OS == "" {
		r.OS = runtime.GOOS
	}
	if r.Arch == "" {
		r.Arch = runtime.GOARCH
	}
	return nil
}

// Verdict is what Preflight found out.
type Verdict struct {
	Place Place  // InPlace or InData: where a commit puts the binary
	Why   string // of the place, to be read after "because"
	// Proven: by the Proof. The file was not hashed again.
	Proven bool
}

// Preflight tells whether this host can run the staged binary and put it in the
// installed one's place, or into the data directory. It changes nothing but the
// staged file's mode. Errors wrap ErrPreflight (or ErrDigest) and name the next step.
// With a Proof that is good the file is neither hashed nor executed.
func Preflight(ctx context.Context, r PreflightRequest) (Verdict, error) {
	if err := r.validate(); err != nil {
		return Verdict{}, err
	}
	if f := r.Proof.open(r); f != nil {
		defer f.Close()
		v := r.choose(&r.Proof.lists)
		v.Proven = true
		return v, r.checkRoom(f, v.Place)
	}
	return r.check(ctx, new(ownership), func(*os.File) error { return nil })
}

func (r PreflightRequest) choose(lists *ownership) (v Verdict) {
	v.Place, v.Why = r.Wish.choose(r.Installed, r.DataDir, lists)
	return v
}

// check is Preflight without a proof; the verified file is shown to see before it is
// executed.
func (r PreflightRequest) check(ctx context.Context, lists *ownership, see func(*os.File) error) (Verdict, error) {
	chosen := make(chan Verdict, 1)
	go func() { chosen <- r.choose(lists) }() // takes its time, as the hash does
	f, err := OpenVerified(r.Staged, r.Digest)
	v := <-chosen
	if err != nil {
		return v, fmt.Errorf("%w; the staged copy was changed after it was verified: look at who can write to %s, then start the update again",
			err, filepath.Dir(r.Staged))
	}
	defer f.Close()
	if err := see(f); err != nil {
		return v, err
	}
	if err := checkPlatform(f, r.OS, r.Arch); err != nil {
		return v, err
	}
	if err := r.checkRoom(f, v.Place); err != nil {
		return v, err
	}
	return v, selfTest(ctx, f, r)
}

// checkRoom tells whether the staged file can be put in its place.
func (r PreflightRequest) checkRoom(f *os.File, place Place) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat staged binary: %w", err)
	}
	if place == InData {
		return CheckSpace(r.DataDir, st.Size())
	}
	if err := checkInstalled(r.Installed, st.Size()); err != nil {
		return err
	}
	return CheckSpace(r.DataDir, 0)
}

// checkInstalled tells whether a swap would have the right and the room.
func checkInstalled(installed string, size int64) error {
	target, err := filepath.EvalSymlinks(installed)
	if err != nil {
		return fmt.Errorf("%w: the installed binary %s cannot be found (%w); name it with --binary", ErrPreflight, installed, err)
	}
	if obstacle := fixed(target); obstacle != "" {
		return fmt.Errorf("%w: %s; let updates go to the data directory with --install-to auto", ErrPreflight, obstacle)
	}
	dir := filepath.Dir(target)
	if err := tryDir(dir); err != nil {
		return fmt.Errorf("%w: %w; correct its permissions, let updates go to the data directory with --install-to auto, or install the agent to a directory of its own and name it with --binary",
			ErrPreflight, err)
	}
	return CheckSpace(dir, size)
}

// CheckSpace tells whether dir's file system has room for size bytes more, and
// one MiB to spare.
func CheckSpace(dir string, size int64) error {
	free, err := freeSpace(dir)
	if err != nil {
		return fmt.Errorf("%w: free space of %s: %w; check that the directory exists", ErrPreflight, dir, err)
	}
	if need := uint64(size) + spareSpace; free < need {
		return fmt.Errorf("%w: %s has %d KiB free, %d KiB are needed; free %d KiB there and start the update again",
			ErrPreflight, dir, free>>10, need>>10, (need-free)>>10+1)
	}
	return nil
}

// selfTest runs `NEW version --json` from the verified descriptor.
func selfTest(ctx context.Context, f *os.File, r PreflightRequest) error {
	out, complaint, err := runBounded(ctx, f, []string{r.Installed, "version", "--json"})
	said := out
	if len(bytes.TrimSpace(complaint)) > 0 {
		said = complaint
	}
	switch {
	case errors.Is(err, errSelfTestTime):
		return fmt.Errorf("%w: `version --json` of the new binary gave no answer within %v; try it by hand: %s version --json", ErrPreflight, SelfTestTimeout, r.Staged)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: the new binary may not be executed from %s (%w); the file system is perhaps mounted noexec: give --data a directory on one that is not",
			ErrPreflight, filepath.Dir(r.Staged), err)
	case err != nil:
		return fmt.Errorf("%w: `version --json` of the new binary ended with %w%s; try it by hand: %s version --json", ErrPreflight, err, quoteLast(said), r.Staged)
	}
	var answer struct {
		Version *string `json:"version"`
	}
	if err := json.Unmarshal(out, &answer); err != nil || answer.Version == nil {
		return fmt.Errorf(`%w: "version --json" of the new binary did not print {"version":…}%s; publish a release made from a moult binary`, ErrPreflight, quoteLast(said))
	}
	if *answer.Version != r.Version {
		return fmt.Errorf("%w: the new binary says it is version %q, its manifest says %q; build it with that version, or correct the manifest, and publish again",
			ErrPreflight, *answer.Version, r.Version)
	}
	return nil
}

var errSelfTestTime = errors.New("timed out")

// runBounded runs the verified file and returns the first 64 KiB of its standard
// output and of its standard error; what it started is ended with it.
func runBounded(ctx context.Context, f *os.File, argv []string) (out, complaint []byte, err error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, nil, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	stdout, err := newCapture()
	if err != nil {
		return nil, nil, err
	}
	stderr, err := newCapture()
	if err != nil {
		stdout.end()
		return nil, nil, err
	}
	p, _, err := StartVerified(f, argv, &os.ProcAttr{
		Env: selfTestEnv(os.Environ()), Files: []*os.File{null, stdout.write, stderr.write}, Sys: ownGroup(),
	})
	if err == nil {
		err = waitBounded(ctx, p)
	}
	return stdout.end(), stderr.end(), err
}

// waitBounded waits for the process, at most for SelfTestTimeout, and ends what
// it has started.
func waitBounded(ctx context.Context, p *os.Process) error {
	killGroup := groupKiller(p)
	type end struct {
		st  *os.ProcessState
		err error
	}
	ended := make(chan end, 1)
	go func() {
		st, err := p.Wait()
		ended <- end{st, err}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, SelfTestTimeout, errSelfTestTime)
	defer cancel()
	var e end
	select {
	case e = <-ended:
	case <-ctx.Done():
		killGroup()
		<-ended
		e.err = context.Cause(ctx)
	}
	killGroup()
	if e.err == nil && !e.st.Success() {
		return errors.New(e.st.String())
	}
	return e.err
}

// capture is a pipe and the beginning of what comes out of it.
type capture struct {
	read, write *os.File
	content     chan []byte
}

func newCapture() (*capture, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &capture{read: r, write: w, content: make(chan []byte, 1)}
	go func() {
		b, _ := io.ReadAll(io.LimitReader(r, maxSelfTestOutput))
		_, _ = io.Copy(io.Discard, r) // let it print on; the limit is ours
		c.content <- b
	}()
	return c, nil
}

// end returns what was captured. It waits for what is still in the pipe, but not
// for a process that escaped its group and holds the pipe.
func (c *capture) end() []byte {
	c.write.Close()
	_ = c.read.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	defer c.read.Close()
	return <-c.content
}

// selfTestEnv drops what would make the new binary take itself for a
// supervised agent.
func selfTestEnv(env []string) []string {
	out := make([]string, 0, len(env))
	for _, kv := range env {
		if !strings.HasPrefix(kv, "MOULT_") {
			out = append(out, kv)
		}
	}
	return out
}

// quoteLast returns the last line of output for an error message.
func quoteLast(out []byte) string {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	last := strings.TrimSpace(string(lines[len(lines)-1]))
	if last == "" {
		return ""
	}
	if len(last) > 300 {
		last = last[:300] + "…"
	}
	return fmt.Sprintf(" (it printed %q)", last)
}
