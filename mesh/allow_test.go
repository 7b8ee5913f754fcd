package mesh

import (
	"errors"
	"net"
	"testing"
	"time"
)

// Where networks are allowed, nothing from elsewhere is read, though it has the
// key, and nobody from elsewhere becomes a member.
func TestOnlyAllowedNetworksGossip(t *testing.T) {
	c := newCluster(t)
	cfg := c.loopback("s1")
	cfg.Pools[0].Allow = []string{"127.0.0.1/32", "127.0.0.2/32"}
	s := c.start(cfg)
	addr := s.GossipAddrs()[0]
	at := func(host, ip string) *Node {
		cfg := c.loopback(host, addr)
		cfg.Pools[0].Bind = ip + ":0"
		return c.start(cfg)
	}
	inside := at("a1", "127.0.0.2")
	outside := at("a2", "127.0.0.3")
	awaitLiveness(t, 20*time.Second, "a1", Online, s)
	awaitLiveness(t, 20*time.Second, "s1", Online, inside)
	time.Sleep(3 * time.Second) // as often as it has tried by then
	if _, known := s.Roster().Member("a2"); known || s.LivePeers() > 1 {
		t.Error("a host from elsewhere is a member")
	}
	if outside.LivePeers() == 0 {
		t.Log("the host from elsewhere got no answer at all")
	}
	for ip, let := range map[string]bool{"127.0.0.1": true, "127.0.0.9": false} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		conn, err := d.DialContext(t.Context(), "tcp", addr)
		must(t, err)
		patience := 20 * time.Second
		if let {
			patience = time.Second // nothing comes
		}
		must(t, conn.SetReadDeadline(time.Now().Add(patience)))
		_, err = conn.Read(make([]byte, 1))
		var timeout net.Error
		if stays := errors.As(err, &timeout) && timeout.Timeout(); stays != let {
			t.Errorf("a stream from %s: %v", ip, err)
		}
		conn.Close()
	}
}
