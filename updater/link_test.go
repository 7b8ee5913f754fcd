package updater

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"
)

// linkAndChild are the two ends of one line.
func linkAndChild(t *testing.T) (*SupervisorLink, *child) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	unused, alsoUnused, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{recv: r, messages: make(chan message, 16)}
	c.pumps.Go(c.readMessages)
	l := &SupervisorLink{send: w, recv: unused}
	t.Cleanup(func() {
		_ = l.Close()
		c.pumps.Wait()
		closeAll(r, alsoUnused)
	})
	return l, c
}

// What is said again and again is made once, and taken apart once; each time counts.
func TestSignsOfLifeAreHeardEachTime(t *testing.T) {
	l, c := linkAndChild(t)
	var want, got []string
	for _, status := range []string{"one", "one", "", "", "two", "one"} {
		if err := l.Alive(status); err != nil {
			t.Fatal(err)
		}
		want = append(want, status)
	}
	if err := l.Serving(); err != nil {
		t.Fatal(err)
	}
	for range want {
		m := <-c.messages
		if m.Event != eventAlive {
			t.Errorf("heard %+v", m)
		}
		got = append(got, m.Status)
	}
	if !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
	if m := <-c.messages; m.Event != eventServing {
		t.Errorf("heard %+v at the end", m)
	}
}

// A line that does not parse is passed over, and does not stand for the next one.
func TestBrokenLinesAreNotHeard(t *testing.T) {
	l, c := linkAndChild(t)
	good, err := json.Marshal(message{Event: eventServing})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{string(good), `{"event":"alive"`, `{"event":"alive"`, string(good), `{"event":7}`} {
		if _, err := l.send.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Joined("v", "d"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{eventServing, eventServing, eventJoined} {
		if m := <-c.messages; m.Event != want {
			t.Errorf("heard %+v, want %s", m, want)
		}
	}
}

// While an agent says the same, neither side makes anything new of it.
func TestSignsOfLifeAllocateNothing(t *testing.T) {
	l, c := linkAndChild(t)
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	say := func() {
		if err := l.Alive("version 1.0.0, live peers: 12"); err != nil {
			t.Error(err)
		}
		select {
		case <-c.messages:
		case <-timeout.C:
			t.Fatal("nothing is heard")
		}
	}
	if n := testing.AllocsPerRun(100, say); n > 1 { // the buffer of what has come
		t.Errorf("a sign of life takes %v allocations", n)
	}
}
