package mesh

import (
	"errors"
	"fmt"
	"log"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// sockets is one UDP and one TCP socket on the same port, as memberlist wants them.
// memberlist's own transport takes 64 KiB anew for each packet, of which a hundred
// bytes are used: in a pool at rest that was most of what a host allocated.
type sockets struct {
	tcp     *net.TCPListener
	udp     *net.UDPConn
	packets chan *memberlist.Packet
	streams chan net.Conn
	logger  *log.Logger

	closing chan struct{}
	once    sync.Once // of Shutdown
	ended   sync.WaitGroup
}

const (
	maxPacket = 1 << 16 // bytes; UDP has no longer ones
	// receiveBuffer is what the kernel is asked to keep of packets that wait: a mass
	// restart sends many at a time. Less is taken where it gives less.
	receiveBuffer    = 2 << 20
	minReceiveBuffer = 64 << 10
	// The pause after an error of accepting, such as too many open files, doubles.
	firstAcceptPause = 5 * time.Millisecond
	maxAcceptPause   = time.Second
)

// openSockets listens on an address; port 0 takes one that is free for both.
func openSockets(ip net.IP, port int, logger *log.Logger) (*sockets, error) {
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip, Port: port})
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip, Port: tcp.Addr().(*net.TCPAddr).Port})
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	for size := receiveBuffer; udp.SetReadBuffer(size) != nil && size > minReceiveBuffer; {
		size /= 2
	}
	s := &sockets{
		tcp: tcp, udp: udp, logger: logger,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), closing: make(chan struct{}),
	}
	s.ended.Go(s.readPackets)
	s.ended.Go(s.acceptStreams)
	return s, nil
}

func (s *sockets) port() int { return s.tcp.Addr().(*net.TCPAddr).Port }

// readPackets passes packets on, each in memory of its own.
func (s *sockets) readPackets() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		at := time.Now() // as near to the packet as can be: it is the answer of a probe
		switch {
		case s.closed():
			return
		case err != nil:
			s.logger.Printf("[ERR] memberlist: Error reading UDP packet: %v", err)
			continue
		case n == 0:
			continue
		}
		p := &memberlist.Packet{
			Buf: append([]byte(nil), buf[:n]...), Timestamp: at,
			From: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Addr().Unmap(), from.Port())),
		}
		select {
		case s.packets <- p:
		case <-s.closing:
			return
		}
	}
}

// acceptStreams passes streams on.
func (s *sockets) acceptStreams() {
	pause := firstAcceptPause
	for {
		conn, err := s.tcp.AcceptTCP()
		if err != nil {
			if s.closed() {
				return
			}
			s.logger.Printf("[ERR] memberlist: Error accepting TCP connection: %v", err)
			select {
			case <-time.After(pause):
			case <-s.closing:
				return
			}
			pause = min(2*pause, maxAcceptPause)
			continue
		}
		pause = firstAcceptPause
		select {
		case s.streams <- conn:
		case <-s.closing:
			_ = conn.Close()
			return
		}
	}
}

func (s *sockets) closed() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

// FinalAdvertiseAddr is memberlist asking what to tell others; a pool always says.
func (s *sockets) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	if ip == "" {
		bound := s.tcp.Addr().(*net.TCPAddr)
		return bound.IP, bound.Port, nil
	}
	parsed := net.ParseIP(ip)
	if parsed == nil {
		return nil, 0, fmt.Errorf("%q is no IP address", ip)
	}
	if v4 := parsed.To4(); v4 != nil {
		parsed = v4
	}
	return parsed, port, nil
}

// WriteTo sends a packet, and returns when it went.
func (s *sockets) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		resolved, err := net.ResolveUDPAddr("udp", addr) // a name; members announce none
		if err != nil {
			return time.Time{}, err
		}
		to = resolved.AddrPort()
	}
	_, err = s.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// WriteToAddress is WriteTo: the address suffices.
func (s *sockets) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return s.WriteTo(b, a.Addr)
}

// PacketCh is where packets come from.
func (s *sockets) PacketCh() <-chan *memberlist.Packet { return s.packets }

// StreamCh is where others' streams come from.
func (s *sockets) StreamCh() <-chan net.Conn { return s.streams }

// DialTimeout opens a stream.
func (s *sockets) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", addr, timeout)
}

// DialAddressTimeout is DialTimeout: the address suffices.
func (s *sockets) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return s.DialTimeout(a.Addr, timeout)
}

// Shutdown closes both sockets and waits until nothing is passed on any more.
func (s *sockets) Shutdown() error {
	var err error
	s.once.Do(func() {
		close(s.closing)
		err = errors.Join(s.tcp.Close(), s.udp.Close())
	})
	s.ended.Wait()
	return err
}

var _ memberlist.NodeAwareTransport = (*sockets)(nil)
