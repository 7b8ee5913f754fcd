package webui

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"moult/consensus/fleet"
)

// Event streams.
const (
	maxStreams = 1000 // on this server
	// maxStreamsPerCaller is how many of them one user, or one API token, may hold,
	// so that one who opens all that he can keeps nobody else out. Hidden tabs hold
	// none.
	maxStreamsPerCaller = 100
	// eventGather is how long changes are gathered into one event. A burst of
	// records or log lines is one refetch, and nobody sees the delay.
	eventGather = 150 * time.Millisecond
	// eventPing is how often an event without content keeps proxies from closing a
	// stream and tells the reader that it is not dead, and how often a silent stream
	// looks whether its reader may still read.
	eventPing = 15 * time.Second
	// eventRetry is when who holds too many streams may ask for one more.
	eventRetry = 15 * time.Second
	// eventWrite is how long a reader may keep a write waiting.
	eventWrite = 10 * time.Second
)

// changeJSON is the data of an event.
type changeJSON struct {
	Index  uint64   `json:"index"`
	Topics []string `json:"topics"`
}

// streamSlots bounds how many event streams are open, in all and by one caller.
// Safe for concurrent use.
type streamSlots struct {
	total, perCaller int

	mu       sync.Mutex
	taken    int
	byCaller map[string]int // of those who have one
}

// take returns why the caller gets no stream; with nil it has one, and must give
// it back.
func (s *streamSlots) take(caller string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.byCaller[caller] >= s.perCaller:
		return refuse(codeTooManyStreams, fmt.Sprintf("%s has %d event streams open on this server, which is as many as one may; close some, or poll", caller, s.perCaller))
	case s.taken >= s.total:
		return refuse(codeBusy, "this server has as many event streams open as it takes; ask another one, or poll")
	}
	if s.byCaller == nil {
		s.byCaller = map[string]int{}
	}
	s.taken++
	s.byCaller[caller]++
	return nil
}

func (s *streamSlots) give(caller string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.byCaller[caller]--; s.byCaller[caller] == 0 {
		delete(s.byCaller, caller)
	}
}

func (s *streamSlots) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// streamEvents tells what changed until the client goes, may no longer read, or
// does not read.
func (u *ui) streamEvents(w http.ResponseWriter, r *http.Request) error {
	actor := callerOf(r).Actor
	if refused := u.streams.take(actor); refused != nil {
		w.Header().Set("Retry-After", fmt.Sprint(int(eventRetry.Seconds())))
		return refused
	}
	defer u.streams.give(actor)
	events, end := u.Subscribe()
	defer end()

	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	s := &stream{w: w, rc: http.NewResponseController(w)}
	if r.Method == http.MethodHead || !s.send(changeJSON{Index: u.View().Index(), Topics: []string{"*"}}) {
		return nil
	}
	ping := time.NewTicker(eventPing)
	defer ping.Stop()
	gather := time.NewTimer(time.Hour)
	gather.Stop()
	defer gather.Stop()
	var next changeJSON
	observed := u.Changed()
	for {
		var topics []string
		select {
		case <-r.Context().Done():
			return nil
		case e := <-events:
			next.Index, topics = e.Index, e.Topics
		case <-observed:
			observed, topics = u.Changed(), []string{"hosts"}
		case <-gather.C:
			if !u.mayStillRead(r) || !s.send(next) {
				return nil
			}
			next.Topics = nil
		case <-ping.C:
			if !u.mayStillRead(r) || !s.write("event: ping\ndata: {}\n\n") {
				return nil
			}
		}
		if len(topics) > 0 && len(next.Topics) == 0 {
			gather.Reset(eventGather)
		}
		next.add(topics)
	}
}

// mayStillRead tells whether the login that opened the stream still holds.
func (u *ui) mayStillRead(r *http.Request) bool {
	who, known := u.authenticate(r)
	return known && who.Role.Includes(fleet.Viewer)
}

// maxTopics is how many topics an event names; beyond it says "*".
const maxTopics = 64

func (c *changeJSON) add(topics []string) {
	for _, t := range topics {
		if !slices.Contains(c.Topics, t) && !slices.Contains(c.Topics, "*") {
			c.Topics = append(c.Topics, t)
		}
	}
	if len(c.Topics) > maxTopics || slices.Contains(c.Topics, "*") {
		c.Topics = []string{"*"}
	}
}

// stream writes events; its methods return false when the reader is lost.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (s *stream) send(c changeJSON) bool {
	data, err := json.Marshal(c)
	return err == nil && s.write(fmt.Sprintf("event: change\ndata: %s\n\n", data))
}

func (s *stream) write(text string) bool {
	_ = s.rc.SetWriteDeadline(time.Now().Add(eventWrite)) // not supported by recorders in tests
	if _, err := s.w.Write([]byte(text)); err != nil {
		return false
	}
	return s.rc.Flush() == nil
}
