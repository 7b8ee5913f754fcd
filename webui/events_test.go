package webui

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
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
	u := &ui{Config: w.config, streams: make(slots, 1)}
	u.streams.take()
	err := u.streamEvents(httptest.NewRecorder(), httptest.NewRequest("GET", "/api/events", nil))
	var refused *fleet.Error
	if !errors.As(err, &refused) || refused.Code != codeBusy {
		t.Errorf("%v", err)
	}
	u.streams.give()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := u.streamEvents(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/api/events", nil)); err != nil {
		t.Error(err)
	}
	if !u.streams.take() {
		t.Error("an ended stream still counts")
	}
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
