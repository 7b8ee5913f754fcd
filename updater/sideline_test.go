//go:build linux

package updater

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A writer that takes nothing holds nobody up and costs bounded memory; when it
// takes again, what was dropped is said.
func TestSidelineNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		s := &sideline{to: w}
		log := slog.New(sidelinedHandler{slog.NewTextHandler(w, nil), s}).With("component", "x")
		start := time.Now()
		for range 10_000 {
			_, _ = s.Write([]byte(strings.Repeat("y", 99) + "\n"))
			log.Info("hello")
		}
		synctest.Wait()
		if s.held > maxSidelined {
			t.Errorf("%d bytes are held, at most %d may be", s.held, maxSidelined)
		}
		s.flush(time.Second)
		if took := time.Since(start); took != time.Second {
			t.Errorf("flushing a writer that takes nothing took %v", took)
		}
		var got bytes.Buffer
		read := make(chan struct{})
		go func() { _, _ = io.Copy(&got, r); close(read) }()
		synctest.Wait()
		log.Info("the last one")
		s.flush(time.Second)
		synctest.Wait()
		w.Close()
		<-read
		for _, want := range []string{"component=x", "bytes of output were dropped", "the last one"} {
			if !strings.Contains(got.String(), want) {
				t.Errorf("%q is not in the output", want)
			}
		}
	})
}
