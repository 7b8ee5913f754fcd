package mesh

import (
	"errors"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"
)

// A packet at rest costs what it is long, not the longest there is.
func TestPacketsCostWhatTheyAreLong(t *testing.T) {
	a, b := startSockets(t), startSockets(t)
	packet := make([]byte, 200)
	exchange := func() {
		_, err := a.WriteTo(packet, b.udp.LocalAddr().String())
		must(t, err)
		select {
		case p := <-b.PacketCh():
			if len(p.Buf) != len(packet) || p.From.String() != a.udp.LocalAddr().String() {
				t.Fatalf("%d bytes come from %v", len(p.Buf), p.From)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the packet does not come")
		}
	}
	exchange()
	const packets = 100
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range packets {
		exchange()
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / packets; each > 2048 {
		t.Errorf("a packet of %d bytes takes %d", len(packet), each)
	}
}

// Two packets that are read one after the other don't share memory.
func TestPacketsAreTheReceivers(t *testing.T) {
	a, b := startSockets(t), startSockets(t)
	var got [2]string
	for i, text := range []string{"first", "other"} {
		_, err := a.WriteToAddress([]byte(text), memberlist.Address{Addr: b.udp.LocalAddr().String()})
		must(t, err)
		p := <-b.PacketCh()
		got[i] = string(p.Buf)
		defer func() {
			if string(p.Buf) != text {
				t.Errorf("%q became %q", text, p.Buf)
			}
		}()
	}
	if got != [2]string{"first", "other"} {
		t.Errorf("came %q", got)
	}
}

// Nobody takes what came: the sockets close all the same.
func TestSocketsCloseWhileSomethingWaits(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	s := startSockets(t)
	conn, err := s.DialTimeout(s.tcp.Addr().String(), 20*time.Second)
	must(t, err)
	defer conn.Close()
	_, err = s.WriteTo([]byte("x"), s.udp.LocalAddr().String())
	must(t, err)
	closed := make(chan error, 1)
	go func() { closed <- s.Shutdown() }()
	select {
	case err := <-closed:
		must(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("it does not close")
	}
	must(t, s.Shutdown()) // again does nothing
	must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the stream that nobody took is open: %v", err)
	}
}

func startSockets(t *testing.T) *sockets {
	t.Helper()
	s, err := openSockets(net.IPv4(127, 0, 0, 1), 0, log.New(io.Discard, "", 0))
	must(t, err)
	t.Cleanup(func() { must(t, s.Shutdown()) })
	return s
}
