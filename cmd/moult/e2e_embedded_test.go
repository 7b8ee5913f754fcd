//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// buildGreeter builds the example of a program with an agent in it.
func buildGreeter(t testing.TB, version, greeting string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "greeter")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version+" -X main.greeting="+greeting, "-o", path, "moult/testdata/greeter")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build greeter %s: %v\n%s", version, err, text)
	}
	return path
}

// Another program than moult joins the mesh, updates itself by its own releases, goes back
// from a bad one, and does its own work all along.
func TestE2EYourOwnProgram(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, 0)
	o := c.outsider(t, "greeter-1")
	dir := t.TempDir()
	program, listen := filepath.Join(dir, "greeter"), freeAddress(t)
	must(t, copyExecutable(buildGreeter(t, "1.0.0", "hello"), program))
	args := o.arguments(filepath.Join(dir, "data"))
	token := filepath.Join(dir, "token")
	at := map[string]string{}
	for i := 1; i+1 < len(args); i += 2 {
		at[args[i]] = args[i+1]
	}
	must(t, os.WriteFile(token, []byte(at["--token"]), 0o600))
	cmd := exec.Command(program, "--listen", listen, "--data", at["--data"], "--name", o.name, "--gossip", o.gossip, "--peer", o.peer,
		"--join", at["--join"], "--token-file", token, "--soak", "500ms")
	log := &lockedBuffer{mu: new(sync.Mutex), b: &bytes.Buffer{}}
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Error("the greeter does not stop on SIGTERM")
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("greeter:\n%s", log)
		}
	})
	greets := func(version string) {
		t.Helper()
		o.await(20*time.Second, "a greeting from "+version, func() error {
			resp, err := http.Get("http://" + listen)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if string(text) != "hello from "+version+"\n" {
				return fmt.Errorf("%q %w", text, err)
			}
			return nil
		})
	}
	o.awaitVersion("1.0.0")
	greets("1.0.0")

	c.publish("2.0.0", buildGreeter(t, "2.0.0", "hello"))
	o.update("succeeded")
	o.awaitVersion("2.0.0")
	greets("2.0.0")
	if got, want := mustDigestOf(t, program), mustDigestOf(t, program+".old"); got == want {
		t.Error("the installed program is the old one")
	}

	// Its own work does not work: what the program is for counts, not only the mesh.
	c.publish("3.0.0", buildGreeter(t, "3.0.0", ""))
	if job := o.update("failed"); !strings.Contains(job.Error, "version 3.0.0 has no greeting") {
		t.Errorf("the job says %q", job.Error)
	}
	o.awaitVersion("2.0.0")
	greets("2.0.0")
	select {
	case <-ended:
		t.Error("the process that was started has ended")
	default:
	}
	if _, err := net.Dial("tcp", o.peer); err != nil {
		t.Errorf("its node port: %v", err)
	}
}

// The guide shows the example as it is.
func TestGuideShowsTheExample(t *testing.T) {
	code, err := os.ReadFile(filepath.Join("..", "..", "testdata", "greeter", "main.go"))
	must(t, err)
	if n := strings.Count(string(code), "\n"); n >= 30 {
		t.Errorf("the example has %d lines, want less than 30", n)
	}
	var shown strings.Builder
	for line := range strings.Lines(string(code)) {
		if line != "\n" {
			line = "    " + line
		}
		shown.WriteString(line)
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "your-own-program.md"))
	must(t, err)
	if !strings.Contains(string(page), shown.String()) {
		t.Error("docs/your-own-program.md does not show testdata/greeter/main.go; copy it there, each line with four spaces before it")
	}
}

// A program without a version is told so, and answers for its version without being one.
func TestYourOwnProgramIsAsked(t *testing.T) {
	path := buildGreeter(t, "1.2.3", "hello")
	out, err := exec.Command(path, "version", "--json").Output()
	if err != nil || strings.TrimSpace(string(out)) != `{"version":"1.2.3"}` {
		t.Errorf("it says %s, %v", out, err)
	}
	text, err := exec.Command(buildGreeter(t, "", "hello"), "version", "--json").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(text), "Options.Version is empty") {
		t.Errorf("without a version it says %s, %v", text, err)
	}
	text, err = exec.Command(path, "--data", t.TempDir()).CombinedOutput()
	if !errors.As(err, &exit) || !strings.Contains(string(text), "belongs to no cluster yet") {
		t.Errorf("without a cluster it says %s, %v", text, err)
	}
	// No server comes along.
	for _, line := range strings.Split(string(mustRun(t, ".", "go", "list", "-deps", "moult/testdata/greeter")), "\n") {
		switch line {
		case "moult/webui", "moult/consensus", "moult/consensus/coordinator", "github.com/hashicorp/raft":
			t.Errorf("the program holds %s", line)
		}
	}
	if st, err := os.Stat(path); err != nil {
		t.Error(err)
	} else {
		t.Logf("%s/%s: %.1f MB", runtime.GOOS, runtime.GOARCH, float64(st.Size())/1e6)
	}
}
