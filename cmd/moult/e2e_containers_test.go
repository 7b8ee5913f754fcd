//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
)

// outsider is an agent that something else than `moult dev` runs.
type outsider struct {
	*testCluster
	name         string
	gossip, peer string
}

func (c *testCluster) outsider(t testing.TB, name string) *outsider {
	return &outsider{testCluster: c, name: name, gossip: freeAddress(t), peer: freeAddress(t)}
}

// arguments are what its agent is started with, each time; the token counts once.
func (o *outsider) arguments(data string) []string {
	o.t.Helper()
	var plan devPlan
	if err := json.Unmarshal([]byte(o.read("dev.json")), &plan); err != nil || len(plan.Servers) == 0 {
		o.t.Fatalf("where the server is: %v", err)
	}
	var token struct{ Token string }
	if err := json.Unmarshal([]byte(o.moult("token", "create", "--json")), &token); err != nil {
		o.t.Fatal(err)
	}
	return []string{
		"agent", "--data", data, "--name", o.name, "--gossip", o.gossip, "--peer", o.peer,
		"--join", plan.Servers[0].Peer, "--token", token.Token, "--soak", "500ms", "--trial-timeout", "30s",
	}
}

func (o *outsider) awaitVersion(version string) {
	o.t.Helper()
	o.await(time.Minute, o.name+" to be online in "+version, func() error {
		h := o.hosts()[o.name]
		if !h.Online || h.AgentVersion != version || h.Phase != "idle" && h.Phase != "rolled_back" {
			return fmt.Errorf("%+v", h)
		}
		return nil
	})
}

// update updates this host, and nobody else.
func (o *outsider) update(status string) apiJob {
	o.t.Helper()
	var out struct {
		JobID string `json:"job_id"`
	}
	if err := o.try("POST", "/api/hosts/"+o.hosts()[o.name].ID+"/update", nil, &out); err != nil {
		o.t.Fatal(err)
	}
	var job apiJob
	o.await(time.Minute, "the job to be "+status, func() error {
		o.get("/api/jobs/"+out.JobID, &job)
		if job.Status != status {
			return fmt.Errorf("it is %s %s", job.Status, job.Error)
		}
		return nil
	})
	return job
}

// container runs an image as a plain container does: its own mounts and processes,
// a root that is read-only, and one volume. unshare and chroot are all it takes.
type container struct {
	*outsider
	image, volume string
	cmd           *exec.Cmd
	ended         chan struct{}
	log           *lockedBuffer
}

// newContainer makes the image, which holds the program and nothing else.
func newContainer(t testing.TB, c *testCluster, name string) *container {
	t.Helper()
	if longForm() {
		t.Skip("the image holds no libraries, which the race detector's builds need")
	}
	k := &container{outsider: c.outsider(t, name), image: filepath.Join(t.TempDir(), "image"), volume: filepath.Join(t.TempDir(), "volume")}
	mount(t, k.image, "size=100m")
	for _, dir := range []string{"usr/bin", "proc", "dev", "tmp", "var/lib/moult"} {
		must(t, os.MkdirAll(filepath.Join(k.image, dir), 0o755))
	}
	must(t, os.Mkdir(k.volume, 0o700))
	k.build(versionA)
	return k
}

// build puts a version into the image.
func (k *container) build(version string) {
	k.t.Helper()
	remount := func(how string) {
		if out, err := exec.Command("mount", "-o", "remount,"+how, k.image).CombinedOutput(); err != nil {
			k.t.Fatalf("remount: %s", out)
		}
	}
	remount("rw")
	must(k.t, copyExecutable(binary(k.t, version), filepath.Join(k.image, "usr/bin/moult")))
	remount("ro")
}

// create starts a new container of the image, with the volume, and returns its process 1.
func (k *container) create(t testing.TB, arguments []string) (one int) {
	t.Helper()
	const script = `set -e
mount --make-rprivate /
mount --bind "$0/volume" "$0/image/var/lib/moult"
mount -t proc proc "$0/image/proc"
mount --bind /dev "$0/image/dev"
image=$0/image
exec chroot "$image" /usr/bin/moult "$@"`
	dir := t.TempDir()
	must(t, os.Symlink(k.image, filepath.Join(dir, "image")))
	must(t, os.Symlink(k.volume, filepath.Join(dir, "volume")))
	k.cmd = exec.Command("unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, dir}, arguments...)...)
	k.log = &lockedBuffer{mu: new(sync.Mutex), b: &bytes.Buffer{}}
	k.cmd.Stdout, k.cmd.Stderr = k.log, k.log
	must(t, k.cmd.Start())
	cmd, ended, log := k.cmd, make(chan struct{}), k.log
	k.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // and its child with it
		<-ended
		if t.Failed() {
			t.Logf("container:\n%s", log)
		}
	})
	k.await(20*time.Second, "process 1 to be moult", func() error {
		select {
		case <-ended:
			t.Fatalf("the container ended: %s", log)
		default:
		}
		one = childOf(cmd.Process.Pid)
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", one))
		if err != nil || string(name) != "moult\n" {
			return fmt.Errorf("process 1 is %s, %w", name, err)
		}
		return nil
	})
	return one
}

// stop stops a container as its engine does.
func (k *container) stop(one int) {
	k.t.Helper()
	must(k.t, syscall.Kill(one, syscall.SIGTERM))
	select {
	case <-k.ended:
	case <-time.After(20 * time.Second):
		k.t.Fatal("the container does not stop on SIGTERM")
	}
	if code := k.cmd.ProcessState.ExitCode(); code != 0 {
		k.t.Errorf("the container's exit code is %d", code)
	}
}

// The binary in an image cannot be replaced: the active version lives in the volume, and a
// new container of the old image goes on with it.
func TestE2EContainer(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, 0)
	k := newContainer(t, c, "contained")
	arguments := k.arguments("/var/lib/moult")
	one := k.create(t, arguments)
	k.awaitVersion(versionA)

	c.publish(versionB, binary(t, versionB))
	k.update("succeeded")
	k.awaitVersion(versionB)
	if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", one)); string(name) != "moult\n" {
		t.Errorf("process 1 is called %q after the update", name)
	}
	if n := len(children(one)); n != 1 {
		t.Errorf("process 1 has %d children, want the agent", n)
	}
	k.await(20*time.Second, "the host to say where it runs from", func() error {
		if h := k.hosts()[k.name]; !strings.HasPrefix(h.RunsFrom, "/var/lib/moult/active/") {
			return fmt.Errorf("it runs from %q", h.RunsFrom)
		}
		return nil
	})
	if shown := c.moult("host", "show", k.name); !strings.Contains(shown, "/var/lib/moult/active/") {
		t.Errorf("moult host show does not say where it runs from:\n%s", shown)
	}
	if got, err := nodekit.FileDigest(filepath.Join(k.image, "usr/bin/moult")); err != nil || got != mustDigestOf(t, binary(t, versionA)) {
		t.Errorf("the image was changed, %v", err)
	}
	k.doctor(one)

	// A bad release goes back to the version in the volume.
	c.badRelease("6.6.6", "exit")
	if job := k.update("failed"); !strings.Contains(job.Error, "the frobnicator is missing") {
		t.Errorf("the job says %q", job.Error)
	}
	k.awaitVersion(versionB)

	// The container is thrown away, and a new one made of the same image.
	k.stop(one)
	c.awaitOffline(k.name)
	one = k.create(t, arguments)
	k.awaitVersion(versionB)

	// One made of a newer image runs that.
	k.stop(one)
	must(t, exec.Command("mount", "-o", "remount,rw", k.image).Run())
	must(t, copyExecutable(buildVersion(t, "3.0.0"), filepath.Join(k.image, "usr/bin/moult")))
	must(t, exec.Command("mount", "-o", "remount,ro", k.image).Run())
	one = k.create(t, arguments)
	k.awaitVersion("3.0.0")
	k.stop(one)
}

// doctor runs `moult doctor` in the container.
func (k *container) doctor(one int) {
	k.t.Helper()
	out, err := exec.Command("nsenter", "--target", strconv.Itoa(one), "--mount", "--pid", "--root", "/usr/bin/moult", "doctor", "--json").Output()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		k.t.Fatal(err)
	}
	var d diagnosis
	if err := json.Unmarshal(out, &d); err != nil {
		k.t.Fatalf("%v: %s", err, out)
	}
	said := ""
	for _, f := range d.Findings {
		if f.Check == "active binary" || f.Check == "update" {
			said += f.Verdict + " " + f.Detail + "\n"
		}
	}
	mustSay(k.t, "doctor", said, "ok "+versionB+" in /var/lib/moult/active/", "/usr/bin/moult hands over to it", "ok would go to /var/lib/moult/active")
	version, err := exec.Command("nsenter", "--target", strconv.Itoa(one), "--mount", "--pid", "--root", "/usr/bin/moult", "version").CombinedOutput()
	if err != nil {
		k.t.Fatal(err)
	}
	mustSay(k.t, "version", string(version), "moult "+versionA, "hands over to "+versionB+" in /var/lib/moult/active/")
}

func mustDigestOf(t testing.TB, path string) string {
	t.Helper()
	digest, err := nodekit.FileDigest(path)
	must(t, err)
	return digest
}
