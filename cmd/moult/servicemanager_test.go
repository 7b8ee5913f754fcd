//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
)

// notifySocket is where systemd listens.
func notifySocket(t *testing.T, watchdog time.Duration) (heard func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(watchdog.Microseconds(), 10))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	return func() string {
		t.Helper()
		buf := make([]byte, 4096)
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			return err.Error()
		}
		return string(buf[:n])
	}
}

// awaitHeard reads on until systemd heard it, and returns what came before.
func awaitHeard(t *testing.T, heard func() string, want string) (before []string) {
	t.Helper()
	for range 1000 {
		got := heard()
		if got == want {
			return before
		}
		if before = append(before, got); strings.Contains(got, "timeout") {
			break
		}
	}
	t.Fatalf("%q was not heard, but %q", want, before)
	return nil
}

func TestServiceManagerSpeaksWithSystemd(t *testing.T) {
	heard := notifySocket(t, 200*time.Millisecond)
	log := &lockedBuffer{mu: new(sync.Mutex), b: &bytes.Buffer{}}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	m := nodekit.NewServiceManager(ctx, slog.New(slog.NewTextHandler(log, nil)))
	m.Well(time.Hour)
	awaitHeard(t, heard, "STATUS=starting")
	awaitHeard(t, heard, "WATCHDOG=1")
	m.Alive("version 1, 2 peers", time.Hour)
	m.Alive("version 1, 2 peers", time.Hour)
	m.Serving()
	m.Ready()
	awaitHeard(t, heard, "STATUS=version 1, 2 peers")
	awaitHeard(t, heard, "READY=1")
	m.Status("next")
	for _, again := range awaitHeard(t, heard, "STATUS=next") {
		if again != "WATCHDOG=1" {
			t.Errorf("it is said twice: %s", again)
		}
	}
	m.Well(-time.Second) // what was expected did not come
	// A ping that was under way may still tell that all is well; those after it may not.
	(&testCluster{t: t}).await(20*time.Second, "the log to tell of it", func() error {
		if text := log.String(); !strings.Contains(text, "nothing is heard of the agent") {
			return errors.New(text)
		}
		return nil
	})
	m.Status("late")
	awaitHeard(t, heard, "STATUS=late")
	time.Sleep(300 * time.Millisecond)
	stop()
	for _, got := range awaitHeard(t, heard, "STOPPING=1") {
		if got == "WATCHDOG=1" {
			t.Error("the watchdog is told that all is well")
		}
	}
	m.Close()
	m.Close()
}

// Without systemd, and with a broken way to it, a process runs as ever.
func TestServiceManagerWithoutSystemd(t *testing.T) {
	for _, socket := range []string{"", filepath.Join(t.TempDir(), "gone")} {
		t.Setenv("NOTIFY_SOCKET", socket)
		m := nodekit.NewServiceManager(t.Context(), slog.New(slog.DiscardHandler))
		m.Alive("well", time.Second)
		m.Serving()
		m.Close()
	}
}

func TestJournalLinesHavePriorities(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(nodekit.NewJournalHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", "web-1")
	log.Debug("d")
	log.Info("two\nlines")
	log.Warn("w", "time", "mine")
	log.WithGroup("g").Error("e", "level", 3)
	want := `<7>msg=d host=web-1
<6>msg="two\nlines" host=web-1
<4>msg=w host=web-1 time=mine
<3>msg=e host=web-1 g.level=3
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
