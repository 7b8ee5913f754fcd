package webui

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"moult/consensus/fleet"
)

// events is an open stream of a server.
type events struct {
	tb     testing.TB
	lines  *bufio.Scanner
	cancel context.CancelFunc
}

func (w *world) MustListen(token string) *events {
	w.tb.Helper()
	srv := httptest.NewServer(w.handler)
	ctx, cancel := context.WithTimeout(w.tb.Context(), 20*time.Second)
	r, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/api/events", nil)
	if err != nil {
		w.tb.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := srv.Client().Do(r)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.tb.Cleanup(func() { cancel(); resp.Body.Close(); srv.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		w.tb.Fatalf("%d %s", resp.StatusCode, body)
	}
	return &events{w.tb, bufio.NewScanner(resp.Body), cancel}
}

// Next returns the next event; false when the server ended the stream.
func (e *events) Next() (changeJSON, bool) {
	e.tb.Helper()
	for e.lines.Scan() {
		if data, ok := strings.CutPrefix(e.lines.Text(), "data: "); ok {
			var c changeJSON
			if err := json.Unmarshal([]byte(data), &c); err != nil {
				e.tb.Fatalf("%v: %s", err, data)
			}
			return c, true
		}
	}
	if err := e.lines.Err(); err != nil {
		e.tb.Fatalf("waited in vain for an event: %v", err)
	}
	return changeJSON{}, false
}

// AwaitTopic reads on until an event names a topic.
func (e *events) AwaitTopic(topic string) changeJSON {
	e.tb.Helper()
	for {
		c, more := e.Next()
		if !more {
			e.tb.Fatalf("the stream ended before %s", topic)
		}
		if slices.Contains(c.Topics, topic) {
			return c
		}
	}
}

func TestEventsSayWhatChanged(t *testing.T) {
	w := StartWorld(t)
	e := w.MustListen(viewerToken)
	if first, _ := e.Next(); !slices.Equal(first.Topics, []string{"*"}) || first.Index != w.state.View().Index() {
		t.Errorf("first: %+v", first)
	}
	w.MustRelease("2.0.0", 2)
	if c := e.AwaitTopic("releases"); c.Index != w.state.View().Index() {
		t.Errorf("%+v, state is at %d", c, w.state.View().Index())
	}
	index := w.state.View().Index()
	w.roster.set("s1", Observation{Online: false})
	if c := e.AwaitTopic("hosts"); c.Index > index {
		t.Errorf("an observed change is not in the log: %+v", c)
	}
}

func TestEventsAreGathered(t *testing.T) {
	w := StartWorld(t)
	e := w.MustListen(viewerToken)
	e.AwaitTopic("*")
	const burst = 40
	for range burst {
		w.roster.set("s1", Observation{Online: true})
	}
	w.MustRelease("2.0.0", 2)
	for n := 1; ; n++ {
		c, _ := e.Next()
		if slices.Contains(c.Topics, "releases") {
			break
		}
		if n > burst/4 {
			t.Fatalf("%d events for a burst", n)
		}
	}
}

func TestStreamEndsWithTheLoginBehindIt(t *testing.T) {
	w := StartWorld(t)
	e := w.MustListen(viewerToken)
	e.AwaitTopic("*")
	w.Admin("DELETE", "/api/tokens/t3", "").OK()
	if c, more := e.Next(); more {
		t.Errorf("told a revoked token: %+v", c)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	w := StartWorld(t)
	u := &ui{Config: w.config, streams: streamSlots{total: 3, perCaller: 2}}
	within, cancelAll := context.WithTimeout(t.Context(), 10*time.Second) // a stream that is not refused goes on
	defer cancelAll()
	as := func(actor string) *http.Request {
		return httptest.NewRequestWithContext(context.WithValue(within, callerKey{}, caller{Actor: actor}), "GET", "/api/events", nil)
	}
	refused := func(actor, code string) {
		t.Helper()
		rec := httptest.NewRecorder()
		var coded *fleet.Error
		if err := u.streamEvents(rec, as(actor)); !errors.As(err, &coded) || coded.Code != code {
			t.Errorf("%s: %v, not %s", actor, err, code)
		}
		if code == codeTooManyStreams && rec.Header().Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	for range 2 {
		if err := u.streams.take("user:ann"); err != nil {
			t.Fatal(err)
		}
	}
	refused("user:ann", codeTooManyStreams)
	if err := u.streams.take("token:ci"); err != nil {
		t.Fatal(err)
	}
	refused("user:bob", codeBusy)
	u.streams.give("user:ann")

	ended := as("user:ann")
	ctx, cancel := context.WithCancel(ended.Context())
	cancel()
	if err := u.streamEvents(httptest.NewRecorder(), ended.WithContext(ctx)); err != nil {
		t.Error(err)
	}
	u.streams.give("user:ann")
	u.streams.give("token:ci")
	if n := u.streams.open(); n != 0 || len(u.streams.byCaller) != 0 {
		t.Errorf("%d streams count, of %v, after all have ended", n, u.streams.byCaller)
	}
}

// TestOneUserCannotTakeAllStreams opens real ones.
func TestOneUserCannotTakeAllStreams(t *testing.T) {
	w := StartWorld(t)
	for range maxStreamsPerCaller {
		w.MustListen(viewerToken).AwaitTopic("*")
	}
	msg := w.Call(viewerToken, "GET", "/api/events", "").Refused(http.StatusTooManyRequests, codeTooManyStreams)
	if !strings.Contains(msg, "token:view") {
		t.Errorf("who? %s", msg)
	}
	w.MustListen(operatorToken).AwaitTopic("*")
}

// stuck is a reader that takes nothing: writes wait for their deadline.
type stuck struct {
	http.ResponseWriter
	tb       testing.TB
	deadline time.Time
	after    int // writes that still go through
}

func (s *stuck) SetWriteDeadline(t time.Time) error {
	s.deadline = t
	return nil
}

func (s *stuck) Flush() {}

func (s *stuck) Write(b []byte) (int, error) {
	if s.after--; s.after >= 0 {
		return len(b), nil
	}
	if s.deadline.IsZero() {
		s.tb.Error("a write without a deadline would wait for ever")
	}
	time.Sleep(time.Until(s.deadline))
	return 0, os.ErrDeadlineExceeded
}

// A reader that does not read is let go in bounded time, and holds nothing up
// meanwhile: what it misses is folded into one event.
func TestReaderThatDoesNotReadIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := StartWorld(t)
		u := &ui{Config: w.config, streams: streamSlots{total: 1, perCaller: 1}}
		r := httptest.NewRequest("GET", "/api/events", nil)
		r.Header.Set("Authorization", "Bearer "+viewerToken)
		begun, ended := time.Now(), make(chan error)
		go func() { ended <- u.streamEvents(&stuck{ResponseWriter: httptest.NewRecorder(), tb: t, after: 1}, r) }()
		synctest.Wait()
		for i := range 200 { // more than wait for a reader
			w.change(t, i)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > eventGather+eventWrite {
			t.Errorf("it was let go after %s", took)
		}
		if u.streams.open() != 0 {
			t.Error("it still counts")
		}
	})
}

func TestManyTopicsBecomeAStar(t *testing.T) {
	var c changeJSON
	c.add([]string{"a", "b", "a"})
	if !slices.Equal(c.Topics, []string{"a", "b"}) {
		t.Errorf("%v", c.Topics)
	}
	for i := range maxTopics {
		c.add([]string{string(rune('A' + i))})
	}
	if c.add([]string{"late"}); !slices.Equal(c.Topics, []string{"*"}) {
		t.Errorf("%v", c.Topics)
	}
}
