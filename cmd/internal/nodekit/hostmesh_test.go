package nodekit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"moult/mesh"
)

// reportNet is a roster of servers and what reached them.
type reportNet struct {
	mu      sync.Mutex
	members []mesh.Member
	moved   chan struct{}
	silent  string // a server that never answers
	got     []string
	ended   int // sends to the silent one that were given up
}

func (n *reportNet) reporter() *reporter {
	n.moved = make(chan struct{})
	return &reporter{
		servers: func() []mesh.Member {
			n.mu.Lock()
			defer n.mu.Unlock()
			return slices.Clone(n.members)
		},
		changed: func() <-chan struct{} {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.moved
		},
		send: func(ctx context.Context, hostID string, payload []byte) {
			n.mu.Lock()
			n.got = append(n.got, hostID+" "+string(payload))
			silent := n.silent == hostID
			n.mu.Unlock()
			if silent {
				<-ctx.Done()
				n.mu.Lock()
				n.ended++
				n.mu.Unlock()
			}
		},
	}
}

// see changes the servers that are online: "s1/2" is s1 in its second life.
func (n *reportNet) see(servers ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.members = nil
	for _, s := range servers {
		id, life, _ := strings.Cut(s, "/")
		var m mesh.Member
		m.HostID = id
		_, _ = fmt.Sscan(life, &m.Boot)
		n.members = append(n.members, m)
	}
	close(n.moved)
	n.moved = make(chan struct{})
}

// took returns what reached the servers since it was asked last.
func (n *reportNet) took() string {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.Sort(n.got)
	got := strings.Join(n.got, ", ")
	n.got = nil
	return got
}

// givenUp counts the sends to the silent server that have ended.
func (n *reportNet) givenUp() int {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ended
}

// A server that lost its power holds up no report to another one. It gets the newest
// when it answers again, and not all that came meanwhile.
func TestReportsDoNotWaitForASilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		n := &reportNet{silent: "s1"}
		r := n.reporter()
		n.see("s1/1", "s2/1")
		for i, want := range []string{"s1 a, s2 a", "s2 b", "s2 c"} {
			r.report(ctx, []byte{byte('a' + i)}, true)
			if got := n.took(); got != want {
				t.Errorf("at once the servers have got %q, want %q", got, want)
			}
		}
		time.Sleep(reportSendTimeout + time.Millisecond)
		if got := n.took(); got != "s1 c" {
			t.Errorf("after the first was given up they have got %q", got)
		}
		stop()
		if ended := n.givenUp(); ended != 1 {
			t.Errorf("%d sends have ended with the host's work, want the first alone", ended)
		}
		time.Sleep(reportSendTimeout)
	})
}

// The report of a job reaches servers that come to be known after it, or start anew,
// once each; no longer than it is of use, and what is of no job does not.
func TestReportsReachServersThatComeLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		n := &reportNet{}
		r := n.reporter()
		seen := func(want string, servers ...string) {
			t.Helper()
			n.see(servers...)
			time.Sleep(2 * reportLook)
			if got := n.took(); got != want {
				t.Errorf("with the servers %v they get %q, want %q", servers, got, want)
			}
		}
		r.report(ctx, []byte("a"), true)
		seen("s1 a", "s1/1")
		seen("s2 a", "s1/1", "s2/1")
		seen("", "s1/1", "s2/1")
		seen("s2 a", "s1/1", "s2/2")
		r.report(ctx, []byte("b"), false)
		if got := n.took(); got != "s1 b, s2 b" {
			t.Errorf("of a report of no job they get %q", got)
		}
		seen("", "s1/1", "s2/2", "s3/1")
		r.report(ctx, []byte("c"), true)
		time.Sleep(reportFollow - time.Second)
		n.took()
		seen("s4 c", "s1/1", "s2/2", "s3/1", "s4/1")
		time.Sleep(time.Second)
		seen("", "s1/1", "s2/2", "s3/1", "s4/1", "s5/1")
		stop()
	})
}
