package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"
)

// openTransport listens for a pool. It returns the port that is bound.
func openTransport(factory TransportFactory, pc PoolConfig, logger *log.Logger) (memberlist.NodeAwareTransport, int, error) {
	if factory != nil {
		t, err := factory(pc.Segment, pc.Bind)
		if err != nil {
			return nil, 0, err
		}
		_, port, err := t.FinalAdvertiseAddr("", 0)
		if err != nil {
			return nil, 0, errors.Join(err, t.Shutdown())
		}
		return t, port, nil
	}
	s, err := listenSockets(pc.Bind, logger)
	if err != nil {
		return nil, 0, fmt.Errorf("segment %q: %w", pc.Segment, err)
	}
	return s, s.port(), nil
}

// Listen opens what a pool uses where there is no TransportFactory, for one to wrap.
func Listen(bind string) (memberlist.NodeAwareTransport, error) {
	return listenSockets(bind, log.New(io.Discard, "", 0))
}

func listenSockets(bind string, logger *log.Logger) (*sockets, error) {
	host, port, err := splitAddress(bind)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: %w; give it as host:port with --gossip", bind, err)
	}
	ip, err := resolveIP(host)
	if err != nil {
		return nil, fmt.Errorf("gossip address %q: %w", bind, err)
	}
	attempts := 1
	if port == 0 {
		attempts = 10 // the free TCP port may be taken for UDP
	}
	for range attempts {
		var s *sockets
		if s, err = openSockets(ip, port, logger); err == nil {
			return s, nil
		}
	}
	if errors.Is(err, syscall.EADDRINUSE) || strings.Contains(err.Error(), "Only one usage of each socket address") {
		return nil, fmt.Errorf("gossip port %s is in use; stop what listens there, or choose another with --gossip", bind)
	}
	return nil, fmt.Errorf("listen for gossip on %s: %w", bind, err)
}

// advertised resolves the address that others reach a pool's transport by.
// memberlist takes only an IP address.
func advertised(pc PoolConfig, bound int) (ip string, port int, err error) {
	host, port, err := "", bound, error(nil)
	if pc.Advertise != "" {
		if host, port, err = splitAddress(pc.Advertise); err != nil {
			return "", 0, fmt.Errorf("advertised gossip address %q: %w", pc.Advertise, err)
		}
		if port == 0 {
			port = bound
		}
	}
	addr, err := resolveIP(host)
	if err != nil {
		return "", 0, fmt.Errorf("advertised gossip address %q: %w", pc.Advertise, err)
	}
	if addr.IsUnspecified() {
		if host, _, err := splitAddress(pc.Bind); err == nil {
			if bind, err := resolveIP(host); err == nil {
				addr = bind
			}
		}
	}
	if addr.IsUnspecified() {
		addr = ownAddress()
	}
	return addr.String(), port, nil
}

func splitAddress(addr string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	if port, err = atoi(text); err != nil {
		return "", 0, fmt.Errorf("port %q is not a number from 0 to 65535", text)
	}
	return host, port, nil
}

// resolveIP returns host's address; "" is the unspecified one.
func resolveIP(host string) (net.IP, error) {
	if host == "" {
		return net.IPv4zero, nil
	}
	if ip := net.ParseIP(host); ip != nil {
		return ip, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if a.IP.To4() != nil {
			return a.IP, nil
		}
	}
	return addrs[0].IP, nil
}

// ownAddress picks the address that others most likely reach this host by: a
// private one, else any global one, else loopback.
func ownAddress() net.IP {
	addrs, _ := net.InterfaceAddrs()
	var global net.IP
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if n.IP.To4() != nil && n.IP.IsPrivate() {
			return n.IP
		}
		if global == nil || global.To4() == nil && n.IP.To4() != nil {
			global = n.IP
		}
	}
	if global == nil {
		global = net.IPv4(127, 0, 0, 1)
	}
	return global
}

// boundedTransport bounds the streams that come in (streams.go), gives each
// outgoing one a deadline, and ends dials and streams with the pool. memberlist sets no deadline when it sends a message: a
// peer that accepts but does not read would hold the sender for ever.
//
// Where only some networks are allowed it also drops what comes from others before
// memberlist reads a byte of it: memberlist itself only looks at who announces himself.
type boundedTransport struct {
	memberlist.NodeAwareTransport
	limit  time.Duration
	ctx    context.Context // ends with the pool
	cancel context.CancelFunc

	packets <-chan *memberlist.Packet
	streams chan net.Conn  // that come in
	stop    chan struct{}  // ends passing them on
	ended   sync.WaitGroup // of that
	once    sync.Once      // of Shutdown
}

func newBoundedTransport(t memberlist.NodeAwareTransport, limit time.Duration, perSource int, allowed []net.IPNet) *boundedTransport {
	ctx, cancel := context.WithCancel(context.Background())
	b := &boundedTransport{
		NodeAwareTransport: t, limit: limit, ctx: ctx, cancel: cancel,
		packets: t.PacketCh(), streams: make(chan net.Conn), stop: make(chan struct{}),
	}
	b.ended.Go(func() { b.boundStreams(b.stop, perSource, allowed) })
	if len(allowed) > 0 {
		packets := make(chan *memberlist.Packet)
		b.packets = packets
		b.ended.Go(func() { passAllowed(t.PacketCh(), packets, b.stop, allowed) })
	}
	return b
}

// passAllowed passes packets on from the networks that are allowed, until stop closes.
func passAllowed(in <-chan *memberlist.Packet, out chan<- *memberlist.Packet, stop <-chan struct{}, allowed []net.IPNet) {
	for {
		select {
		case <-stop:
			return
		case packet := <-in:
			if !comesFrom(packet.From, allowed) {
				continue
			}
			select {
			case out <- packet:
			case <-stop:
				return
			}
		}
	}
}

// comesFrom tells whether an address lies in one of the networks; none allows all.
func comesFrom(addr net.Addr, networks []net.IPNet) bool {
	if len(networks) == 0 {
		return true
	}
	host, _, err := net.SplitHostPort(addr.String())
	ip := net.ParseIP(host)
	return err == nil && ip != nil && slices.ContainsFunc(networks, func(n net.IPNet) bool { return n.Contains(ip) })
}

// PacketCh is where memberlist takes packets from.
func (t *boundedTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialAddressTimeout opens a stream that lives as long as the limit at most.
func (t *boundedTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := t.dial(a, min(timeout, t.limit))
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(t.limit)); err != nil {
		conn.Close()
		return nil, err
	}
	return &boundedConn{Conn: conn, release: context.AfterFunc(t.ctx, func() { conn.Close() })}, nil
}

func (t *boundedTransport) dial(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if _, ok := t.NodeAwareTransport.(*sockets); !ok {
		return t.NodeAwareTransport.DialAddressTimeout(a, timeout)
	}
	dialer := net.Dialer{Timeout: timeout}
	return dialer.DialContext(t.ctx, "tcp", a.Addr)
}

// Shutdown ends what is going out, then what comes in. Streams are taken until the
// transport below has ended: it may be waiting for that.
func (t *boundedTransport) Shutdown() error {
	t.cancel()
	err := t.NodeAwareTransport.Shutdown()
	t.once.Do(func() { close(t.stop) })
	t.ended.Wait()
	return err
}

type boundedConn struct {
	net.Conn
	release func() bool
}

func (c *boundedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// memberlistLog passes memberlist's lines on to slog. What memberlist calls an
// error is one peer that does not answer, so it ranks lower here. Each packet of
// garbage is a line as well, and anybody can send those: so what ranks above debug
// is told at a bounded pace.
type memberlistLog struct {
	logger *slog.Logger
	pace   *rate.Limiter
}

// Lines of memberlist's own that a pool logs at most.
const (
	logLinesPerSecond = 1
	logLinesBurst     = 20
)

func newMemberlistLog(logger *slog.Logger) memberlistLog {
	return memberlistLog{logger, rate.NewLimiter(logLinesPerSecond, logLinesBurst)}
}

func (l memberlistLog) Write(line []byte) (int, error) {
	text := bytes.TrimSpace(line)
	level := slog.LevelDebug
	for _, p := range []struct {
		prefix string
		level  slog.Level
	}{{"[ERR] ", slog.LevelInfo}, {"[ERROR] ", slog.LevelInfo}, {"[WARN] ", slog.LevelDebug}, {"[INFO] ", slog.LevelDebug}, {"[DEBUG] ", slog.LevelDebug}} {
		if rest, ok := bytes.CutPrefix(text, []byte(p.prefix)); ok {
			text, level = rest, p.level
			break
		}
	}
	text = bytes.TrimPrefix(text, []byte("memberlist: "))
	if level > slog.LevelDebug && !l.pace.Allow() {
		level = slog.LevelDebug
	}
	l.logger.Log(context.Background(), level, string(text[:min(len(text), 400)]))
	return len(line), nil
}
