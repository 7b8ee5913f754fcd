package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A flood of streams that say nothing keeps no member out, and no more of them are
// held than there may be.
func TestStreamFloodKeepsNobodyOut(t *testing.T) {
	c := newCluster(t)
	cfg := c.loopback("s1")
	cfg.Timing.Stream = time.Minute // so that only the limit lets them go
	s := c.start(cfg)
	var flood []net.Conn
	for i := range 3 * maxSourceStreams {
		conn, err := net.Dial("tcp", s.GossipAddrs()[0])
		must(t, err)
		defer conn.Close()
		if i%2 == 0 {
			_, err = conn.Write([]byte{244, 1}) // the beginning of a label
			must(t, err)
		}
		flood = append(flood, conn)
	}
	ended := func() (n int) {
		for _, conn := range flood {
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := conn.Read(make([]byte, 1))
			if err != nil && !isTimeout(err) {
				n++
			}
		}
		return n
	}
	await(t, 20*time.Second, "all but the last to be pushed out", func() bool { return ended() >= 2*maxSourceStreams })
	if n := ended(); n > 2*maxSourceStreams {
		t.Errorf("%d of %d were closed: fewer are held than may be", n, len(flood))
	}
	a := c.start(c.loopback("a1", s.GossipAddrs()...))
	awaitLiveness(t, 20*time.Second, "a1", Online, s, a)
	awaitLiveness(t, 20*time.Second, "s1", Online, s, a)
}

// A stranger who announces a lot, and sends more than he may, is cut off.
func TestEndlessStreamIsCutOff(t *testing.T) {
	c := newCluster(t)
	cfg := c.loopback("s1")
	cfg.Timing.Stream = time.Minute
	s := c.start(cfg)
	conn, err := net.Dial("tcp", s.GossipAddrs()[0])
	must(t, err)
	defer conn.Close()
	label := "moult/" + cfg.Identity.Cluster + "/default"
	head := append([]byte{244, byte(len(label))}, label...)
	head = append(head, 10) // encrypted
	head = binary.BigEndian.AppendUint32(head, 19<<20)
	_, err = conn.Write(head)
	must(t, err)
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	// No more than it may be sent: the kernel's buffers would hold any number of bytes.
	_, err = conn.Write(make([]byte, maxStreamBytes+64<<10))
	if err == nil {
		_, err = io.Copy(io.Discard, conn)
	}
	if isTimeout(err) {
		t.Error("it is still open after more than it may be sent")
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// Closing does not wait for streams that come in all the time.
func TestCloseUnderAStreamFlood(t *testing.T) {
	c := newCluster(t)
	s := c.start(c.loopback("s1"))
	ctx, stop := context.WithCancel(t.Context())
	var floods sync.WaitGroup
	for range 4 {
		floods.Go(func() {
			for ctx.Err() == nil {
				if conn, err := net.Dial("tcp", s.GossipAddrs()[0]); err == nil {
					conn.Close()
				}
			}
		})
	}
	began := time.Now()
	must(t, s.Close())
	stop()
	floods.Wait()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("closing took %v", took)
	}
}

type countingHandler struct {
	slog.Handler
	mu    sync.Mutex
	lines map[slog.Level]int
}

func (h *countingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *countingHandler) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines[r.Level]++
	return nil
}

// Anybody can send packets that do not decrypt, and each is a line of
// memberlist's: the log does not grow with them.
func TestGarbageDoesNotFillTheLog(t *testing.T) {
	counts := &countingHandler{lines: map[slog.Level]int{}}
	l := log.New(newMemberlistLog(slog.New(counts)), "", 0)
	for range 10_000 {
		l.Print("[ERR] memberlist: Decrypt packet failed: no installed keys could decrypt the message from=10.6.6.6:1")
	}
	if n := counts.lines[slog.LevelInfo]; n < 1 || n > logLinesBurst+60 {
		t.Errorf("%d lines", n)
	}
}

// Many long streams together are cut before they fill the memory; short ones,
// which is what messages are, are not.
func TestStreamsTogetherAreBounded(t *testing.T) {
	var held atomic.Int64
	open := func() *incoming {
		here, there := net.Pipe()
		t.Cleanup(func() { here.Close() })
		go func() { _, _ = io.Copy(here, endlessZeros{}) }()
		return &incoming{Conn: there, end: func() {}, held: &held}
	}
	read := func(c *incoming, n int64) error {
		_, err := io.CopyN(io.Discard, c, n)
		return err
	}
	var long []*incoming
	for range maxStreamsBytes / maxStreamBytes {
		c := open()
		must(t, read(c, maxStreamBytes))
		long = append(long, c)
	}
	if err := read(open(), 4*maxEnvelope); !errors.Is(err, errStreamsTooLong) {
		t.Errorf("one more long stream: %v", err)
	}
	must(t, read(open(), maxEnvelope))
	for _, c := range long {
		c.Close()
		c.Close()
	}
	if left := held.Load(); left > 6*maxEnvelope {
		t.Errorf("%d bytes are still counted", left)
	}
	c := open()
	if err := read(c, maxStreamBytes+1); !errors.Is(err, errStreamTooLong) {
		t.Errorf("an endless stream: %v", err)
	}
}

type endlessZeros struct{}

func (endlessZeros) Read(b []byte) (int, error) { return len(b), nil }
