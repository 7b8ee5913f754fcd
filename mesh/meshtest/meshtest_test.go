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
