package meshtest

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pair(t *testing.T, n *Network) (a, b *Transport) {
	t.Helper()
	var ends []*Transport
	for _, host := range []string{"a", "b"} {
		tr, err := n.Listen(host, "10.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tr.Shutdown() })
		ends = append(ends, tr)
	}
	return ends[0], ends[1]
}

func received(b *Transport) bool {
	synctest.Wait()
	select {
	case <-b.PacketCh():
		return true
	default:
		return false
	}
}

func TestPacketsFollowCutHealAndDrop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := pair(t, n)
		send := func() bool {
			if _, err := a.WriteTo([]byte("x"), b.addr()); err != nil {
				t.Fatal(err)
			}
			return received(b)
		}
		if !send() {
			t.Error("lost on a sound network")
		}
		n.Cut("b", "a")
		if send() {
			t.Error("passed a cut")
		}
		n.Heal("a", "b")
		if !send() {
			t.Error("lost after healing")
		}
		n.Drop(1)
		if send() {
			t.Error("passed although all packets drop")
		}
	})
}

func TestFilterLetsOneSideBeginNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := pair(t, n)
		n.Filter("a", "b")
		send := func(from, to *Transport) bool {
			if _, err := from.WriteTo([]byte("x"), to.addr()); err != nil {
				t.Fatal(err)
			}
			return received(to)
		}
		if send(a, b) {
			t.Error("a packet began at the side that may not")
		}
		if !send(b, a) || !send(a, b) {
			t.Error("the answer to a packet is lost")
		}
		time.Sleep(filterMemory)
		if send(a, b) {
			t.Error("an answer passes for ever")
		}
		if _, err := a.DialTimeout(b.addr(), time.Second); err == nil {
			t.Error("a stream began at the side that may not")
		}
		near, err := b.DialTimeout(a.addr(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		far := <-a.StreamCh()
		far.Write([]byte("y"))
		if _, err := near.Read(make([]byte, 1)); err != nil {
			t.Errorf("a stream's answer is lost: %v", err)
		}
		n.HealAll()
		if !send(a, b) {
			t.Error("lost though nothing filters")
		}
	})
}

func TestSlowHostsPacketsTakeLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := pair(t, n)
		n.Slow("b", 2*time.Second)
		start := time.Now()
		a.WriteTo([]byte("x"), b.addr())
		<-b.PacketCh()
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("to the slow host it took %v", took)
		}
		n.Slow("b", 0)
		b.WriteTo([]byte("x"), a.addr())
		if !received(a) {
			t.Error("it is slow for ever")
		}
	})
}

func TestDelayHoldsPacketsAndStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := pair(t, n)
		n.Delay(time.Second)
		start := time.Now()
		a.WriteTo([]byte("x"), b.addr())
		if received(b) {
			t.Fatal("arrived at once")
		}
		<-b.PacketCh()
		if took := time.Since(start); took != time.Second {
			t.Errorf("packet took %v", took)
		}
		near, err := a.DialTimeout(b.addr(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		far := <-b.StreamCh()
		start = time.Now()
		near.Write([]byte("hello"))
		near.Close()
		got, err := io.ReadAll(far)
		if string(got) != "hello" || err != nil || time.Since(start) != time.Second {
			t.Errorf("read %q, %v after %v", got, err, time.Since(start))
		}
	})
}

func TestStreamsBreakAtACutAndObeyDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := pair(t, n)
		near, err := a.DialTimeout(b.addr(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		far := <-b.StreamCh()
		far.SetDeadline(time.Now().Add(3 * time.Second))
		start := time.Now()
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("read ended with %v after %v", err, time.Since(start))
		}
		n.Cut("a", "b")
		if _, err := near.Write([]byte("x")); err == nil {
			t.Error("wrote across a cut")
		}
		start = time.Now()
		if _, err := a.DialTimeout(b.addr(), time.Second); err == nil || time.Since(start) != time.Second {
			t.Errorf("dial across a cut: %v after %v", err, time.Since(start))
		}
		n.HealAll()
		b.Shutdown()
		start = time.Now()
		var refused *net.OpError
		if _, err := a.DialTimeout(b.addr(), time.Second); !errors.As(err, &refused) || time.Since(start) != 0 {
			t.Errorf("dial to a closed port: %v after %v", err, time.Since(start))
		}
	})
}
