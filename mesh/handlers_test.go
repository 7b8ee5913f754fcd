package mesh

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"moult/mesh/identity"
)

// A topic's handler gets a sender's messages in order, each once; a queue that is
// full refuses, and has room again when the handler went on.
func TestHandlersKeepOrderAndBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		h := newHandlers(&wg)
		var got []string
		held := make(chan struct{})
		h.handle("topic", func(_ identity.Identity, payload []byte) {
			<-held
			got = append(got, string(payload))
		})
		if h.deliver("other", identity.Identity{HostID: "a"}, nil) {
			t.Error("a topic without handler takes a message")
		}
		var want []string
		send := func(n int) bool {
			text := fmt.Sprint(n)
			ok := h.deliver("topic", identity.Identity{HostID: "a"}, []byte(text))
			if ok {
				want = append(want, text)
			}
			return ok
		}
		if !send(0) {
			t.Fatal("the first message is refused")
		}
		synctest.Wait() // it is being handled, and waits no more
		for n := 1; n <= handlerQueue; n++ {
			if !send(n) {
				t.Fatalf("message %d is refused", n)
			}
		}
		if send(handlerQueue + 1) {
			t.Error("more wait than may")
		}
		close(held)
		wg.Wait()
		if !send(handlerQueue + 2) {
			t.Error("an empty queue refuses")
		}
		wg.Wait()
		if !slices.Equal(got, want) || h.bytes != 0 {
			t.Errorf("%d of %d messages came in order, %d bytes wait", len(got), len(want), h.bytes)
		}
	})
}

// What waits when the node closes is dropped; the one that is handled ends.
func TestHandlersEndWithTheOneTheyHandle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		h := newHandlers(&wg)
		handled := 0
		held := make(chan struct{})
		h.handle("topic", func(identity.Identity, []byte) { handled++; <-held })
		for range 3 {
			h.deliver("topic", identity.Identity{HostID: "a"}, []byte("x"))
		}
		synctest.Wait()
		h.close()
		close(held)
		wg.Wait()
		if handled != 1 || h.deliver("topic", identity.Identity{HostID: "a"}, nil) {
			t.Errorf("%d are handled after the close", handled)
		}
	})
}
