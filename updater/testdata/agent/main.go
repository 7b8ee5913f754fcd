// Command agent is what the supervisor's tests supervise. One build plays every
// part: its version and behaviour are in the last line of its own file,
//
//	MOULT-TEST {"version":"1.1.0","behave":"good"}
//
// so that a variant is a copy with another line at its end, and another digest.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"moult/updater"
)

type part struct {
	Version string `json:"version"`
	Behave  string `json:"behave"`
}

func main() {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		fatal(err)
	}
	var p part
	if i := bytes.LastIndex(self, []byte("\nMOULT"+"-TEST ")); i >= 0 {
		if err := json.Unmarshal(bytes.TrimSpace(self[i+12:]), &p); err != nil {
			fatal(err)
		}
	}
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Printf("{\"version\":%q}\n", p.Version)
		return
	}
	link, supervised := updater.Supervised()
	switch {
	case !supervised && os.Getenv("TEST_ALONE") != "":
		alone(p)
		return
	case !supervised:
		supervise(p)
		return
	}
	sum := sha256.Sum256(self)
	agent(p, link, hex.EncodeToString(sum[:]))
}

// alone works without a supervisor, except while a trial runs.
func alone(p part) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	data := os.Getenv("TEST_DATA")
	active := begin(p, data)
	if err := updater.SettleTrial(config(data, active)); err != nil {
		fatal(err)
	}
	note(data, "agent "+p.Version+" pid "+strconv.Itoa(os.Getpid())+" alone")
	for ctx.Err() == nil {
		if os.Remove(filepath.Join(data, "restart")) != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		committed, err := updater.RunTrial(ctx, config(data, active))
		note(data, fmt.Sprintf("trial ended: committed %v, error %v", committed, err))
		if ctx.Err() == nil {
			fatal(updater.ReplaceSelf(os.Getenv("TEST_INSTALLED")))
		}
	}
	note(data, "agent "+p.Version+" stopped")
}

func supervise(p part) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	data := os.Getenv("TEST_DATA")
	active := begin(p, data)
	note(data, "supervisor "+p.Version)
	if p.Behave == "bad-supervisor" {
		fatal(errors.New("the new supervisor does not work"))
	}
	err := updater.RunSupervisor(ctx, config(data, active))
	note(data, "supervisor ended")
	switch {
	case errors.Is(err, updater.ErrGaveUp):
		os.Exit(updater.ExitGiveUp)
	case err != nil:
		fatal(err)
	}
}

// begin becomes the active binary, if there is one.
func begin(p part, data string) (active bool) {
	return updater.BeginActive(updater.PackagedConfig{
		Installed: os.Getenv("TEST_INSTALLED"), DataDir: data, Version: p.Version,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

func config(data string, active bool) updater.SupervisorConfig {
	return updater.SupervisorConfig{
		Installed: os.Getenv("TEST_INSTALLED"), Active: active, DataDir: data, Args: []string{"agent"},
		TrialTimeout: duration("TEST_TRIAL_TIMEOUT", time.Minute), Soak: duration("TEST_SOAK", 100*time.Millisecond),
		RestartDelay: duration("TEST_RESTART_DELAY", 20*time.Millisecond), MaxRestartDelay: 400 * time.Millisecond, StopTimeout: 6 * time.Second,
		Output: os.Stdout, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Service: service(data),
		SwapStep: func(step string) error {
			if step == os.Getenv("TEST_KILL_AT") {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			return nil
		},
	}
}

// noting is a service manager that writes down what it is told.
type noting struct{ data string }

func (n noting) Ready()               { note(n.data, fmt.Sprintf("service %d ready", os.Getpid())) }
func (n noting) Well(d time.Duration) { note(n.data, fmt.Sprintf("service well for %v", d)) }
func (n noting) Status(line string)   { note(n.data, fmt.Sprintf("service status %q", line)) }

func service(data string) updater.Service {
	if os.Getenv("TEST_SERVICE") == "" {
		return nil
	}
	return noting{data}
}

// live tells the supervisor that the agent works, far more often than it has to.
func live(p part, link *updater.SupervisorLink) {
	if err := link.Serving(); err != nil {
		fatal(err)
	}
	for {
		if err := link.Alive("agent " + p.Version + os.Getenv("TEST_SERVICE")); err != nil {
			return // it is about to end
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// agent writes down what happens and plays its part. An agent that is not on
// trial restarts when the file DATA/restart appears; one that is does nothing while the
// file DATA/joining is there.
func agent(p part, link *updater.SupervisorLink, digest string) {
	data := os.Getenv("TEST_DATA")
	trial := ""
	if link.OnTrial() {
		trial = " on trial"
		if link.Digest() != digest {
			fatal(fmt.Errorf("the supervisor says that this is %q, it is %s", link.Digest(), digest))
		}
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM) // before the tests can know of it and end it
	note(data, "agent "+p.Version+" pid "+strconv.Itoa(os.Getpid())+trial)
	if link.OnTrial() {
		for present(data, "joining") {
			time.Sleep(10 * time.Millisecond)
		}
		switch p.Behave {
		case "crash":
			fmt.Println("panic: cannot find libmoult")
			os.Exit(3)
		case "hang", "silent":
			fmt.Println("waiting for a peer that never answers")
		case "chatty":
			for range 100_000 {
				fmt.Println("still waiting for a peer that never answers")
			}
		case "lie":
			say(link, "9.9.9", digest)
		case "fails-slowly": // what it was for does not work, and its end takes longer than the soak
			say(link, p.Version, digest)
			if err := link.Failing(); err != nil {
				fatal(err)
			}
			time.Sleep(duration("TEST_SOAK", 0) + time.Second)
			fmt.Println("no database")
			os.Exit(5)
		case "joins-and-dies":
			say(link, p.Version, digest)
			fmt.Println("out of cheese")
			os.Exit(4)
		default:
			say(link, p.Version, digest)
		}
	}
	if p.Behave == "orphans" {
		orphan()
	}
	if p.Behave == "gives-up" {
		fmt.Println("token refused")
		os.Exit(updater.ExitGiveUp)
	}
	if p.Behave == "restarts" {
		os.Exit(updater.ExitRestart)
	}
	if p.Behave == "hang" {
		signal.Ignore(syscall.SIGTERM)
	}
	if os.Getenv("TEST_SERVICE") != "" {
		note(data, fmt.Sprintf("socket of the service manager: %q", os.Getenv("NOTIFY_SOCKET")))
		go live(p, link)
	}
	committed, parentGone := link.Committed(), link.ParentGone()
	if p.Behave == "deaf" {
		parentGone = nil
	}
	poll := time.NewTicker(10 * time.Millisecond)
	for {
		select {
		case <-term:
			note(data, "agent "+p.Version+" stopped")
			return
		case <-parentGone:
			note(data, "agent "+p.Version+" lost its parent")
			return
		case <-committed:
			committed = nil
			note(data, "agent "+p.Version+" committed")
		case <-poll.C:
			if os.Remove(filepath.Join(data, "restart")) == nil {
				leave(data, link)
				os.Exit(updater.ExitRestart)
			}
			if b, err := os.ReadFile(filepath.Join(data, "print")); err == nil && os.Remove(filepath.Join(data, "print")) == nil {
				fmt.Println(string(b))
			}
		}
	}
}

// leave says that a restart is due, as agents of this version do, and takes its time
// while the file DATA/leaving is there.
func leave(data string, link *updater.SupervisorLink) {
	if os.Getenv("TEST_OLD_AGENT") == "" {
		if err := link.Restarting(); err != nil {
			fatal(err)
		}
	}
	for present(data, "leaving") {
		time.Sleep(10 * time.Millisecond)
	}
}

// present tells whether a file is in the data directory.
func present(data, name string) bool {
	_, err := os.Stat(filepath.Join(data, name))
	return err == nil
}

// orphan starts a process that starts another one and ends: that one has no parent
// any more, and ends a moment later.
func orphan() {
	cmd := exec.Command("/bin/sh", "-c", "sleep 3 & exit 0")
	if err := cmd.Run(); err != nil {
		fatal(err)
	}
}

func say(link *updater.SupervisorLink, version, digest string) {
	if err := link.Joined(version, digest); err != nil {
		fatal(err)
	}
}

func note(data, line string) {
	f, err := os.OpenFile(filepath.Join(data, "events"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fatal(err)
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

func duration(name string, d time.Duration) time.Duration {
	if v, err := time.ParseDuration(os.Getenv(name)); err == nil {
		return v
	}
	return d
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "agent:", err)
	os.Exit(1)
}
