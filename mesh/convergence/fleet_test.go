package convergence

import (
	"crypto/ed25519"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"moult/mesh"
	"moult/mesh/identity"
)

const (
	loopback = "127.0.0.1"
	cluster  = "6f7c2a10-0000-4000-8000-00000000c0de"
	segment  = "default"
)

var digest = strings.Repeat("ab", 32)

// fleet has the hosts' identities, and counts what they send.
type fleet struct {
	t        *testing.T
	ca       *identity.CA
	verifier *identity.Verifier
	traffic  traffic
	boot     atomic.Uint64 // of the members that are started

	mu    sync.Mutex
	keys  map[string]ed25519.PrivateKey
	ports map[int]int // of members' gossip; a restarted one has the same again
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	ca, err := identity.NewCA(cluster, time.Now())
	must(t, err)
	v, err := identity.NewVerifier(cluster, ca.CertPEM())
	must(t, err)
	f := &fleet{t: t, ca: ca, verifier: v, keys: map[string]ed25519.PrivateKey{}, ports: map[int]int{}}
	f.boot.Store(1)
	return f
}

func hostID(i int) string { return fmt.Sprintf("6f7c2a10-0000-4000-8000-%012d", i) }

// hostNumber is hostID the other way round.
func hostNumber(id string) int {
	n, err := strconv.Atoi(id[max(0, len(id)-12):])
	if err != nil {
		return -1
	}
	return n
}

func jobID(generation int) string {
	return fmt.Sprintf("6f7c2a10-0000-4000-9000-%012d", generation)
}

func role(i int) identity.Role {
	if i < servers {
		return identity.RoleServer
	}
	return identity.RoleAgent
}

func (f *fleet) key(host string) ed25519.PrivateKey {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys[host] == nil {
		key, err := identity.NewKey()
		if err != nil {
			panic(err)
		}
		f.keys[host] = key
	}
	return f.keys[host]
}

// enrolled is what servers check records with.
func (f *fleet) enrolled(host string) (ed25519.PublicKey, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key, ok := f.keys[host]
	if !ok {
		return nil, false
	}
	return key.Public().(ed25519.PublicKey), true
}

func (f *fleet) certificate(id identity.Identity) []byte {
	text, err := f.ca.Issue(id, f.key(id.HostID).Public().(ed25519.PublicKey), time.Now(), 24*time.Hour)
	must(f.t, err)
	block, _ := pem.Decode(text)
	return block.Bytes
}

// record makes the record that a host of moult announces at a generation. The others
// carry the same bytes as metadata.
func (f *fleet) record(i, generation int) []byte {
	r := mesh.Record{
		HostID: hostID(i), Boot: f.boot.Load(), Seq: uint64(generation) + 1, Role: string(role(i)), Version: "1.0.0", Digest: digest[:16],
		OS: "linux", Arch: "amd64", Segments: []string{segment}, PeerPort: 7947, Phase: mesh.PhaseIdle, Renews: true,
	}
	if generation > 0 {
		r.Phase, r.JobID = mesh.PhaseFetching, jobID(generation)
	}
	signed, err := r.Sign(cluster, f.key(hostID(i)))
	if err != nil {
		panic(err)
	}
	return signed.Raw
}

// listen opens moult's sockets on loopback, where a member listened before if it did,
// and counts. All systems have them: memberlist's own transport takes 64 KiB anew for
// each packet, which hundreds of members in one process can't afford.
func (f *fleet) listen(i int) (*countingTransport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	own, err := mesh.Listen(net.JoinHostPort(loopback, strconv.Itoa(f.ports[i])))
	if err != nil {
		return nil, err
	}
	_, f.ports[i], err = own.FinalAdvertiseAddr("", 0)
	return &countingTransport{NodeAwareTransport: own, traffic: &f.traffic, port: f.ports[i]}, err
}

// traffic counts what all members of a pool send.
type traffic struct{ packets, bytes atomic.Uint64 }

// countingTransport is the one that a system has by default, and counts.
type countingTransport struct {
	memberlist.NodeAwareTransport
	traffic *traffic
	port    int
}

func (c *countingTransport) count(n int) {
	c.traffic.packets.Add(1)
	c.traffic.bytes.Add(uint64(n))
}

func (c *countingTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	c.count(len(b))
	return c.NodeAwareTransport.WriteTo(b, addr)
}

func (c *countingTransport) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	c.count(len(b))
	return c.NodeAwareTransport.WriteToAddress(b, addr)
}

func (c *countingTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	conn, err := c.NodeAwareTransport.DialTimeout(addr, timeout)
	return c.counted(conn, err)
}

func (c *countingTransport) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := c.NodeAwareTransport.DialAddressTimeout(addr, timeout)
	return c.counted(conn, err)
}

func (c *countingTransport) counted(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return &countingConn{conn, c.traffic}, nil
}

// countingConn counts both directions, on the side that opened the stream.
type countingConn struct {
	net.Conn
	traffic *traffic
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.traffic.bytes.Add(uint64(len(b)))
	return c.Conn.Write(b)
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.traffic.bytes.Add(uint64(n))
	return n, err
}

// phase measures what a while costs.
type phase struct {
	traffic        *traffic
	packets, bytes uint64
	cpu            time.Duration
	began          time.Time
}

func (t *traffic) begin() phase {
	return phase{t, t.packets.Load(), t.bytes.Load(), processorTime(), time.Now()}
}

func (p phase) end(members int) cost {
	took := time.Since(p.began).Seconds()
	return cost{
		Cores:   (processorTime() - p.cpu).Seconds() / took,
		Packets: float64(p.traffic.packets.Load()-p.packets) / took / float64(members),
		Bytes:   float64(p.traffic.bytes.Load()-p.bytes) / took / float64(members),
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// socketDrops returns how many packets found a socket's buffer full, on the whole
// machine; 0 where the kernel does not tell.
func socketDrops(t *testing.T) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		return 0
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "RcvbufErrors" && i < len(fields) {
				n, err := strconv.ParseUint(fields[i], 10, 64)
				must(t, err)
				return n
			}
		}
	}
	return 0
}
