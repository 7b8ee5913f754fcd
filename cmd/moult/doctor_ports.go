package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// lookAtOwnPorts tries, while no process runs, whether one could have its ports.
func (d *diagnosis) lookAtOwnPorts(running nodekit.RunningNode) {
	ports := []struct {
		what, addr, flag string
		packets          bool
	}{
		{"node port", running.Peer, "--peer", false},
		{"gossip port", running.Gossip, "--gossip", true},
		{"UI port", running.HTTP, "--http", false},
	}
	free := true
	for _, p := range ports {
		_, port, err := net.SplitHostPort(p.addr)
		if err != nil || port == "0" {
			continue
		}
		err = portTaken(p.addr, p.packets)
		if err == nil {
			continue
		}
		free = false
		d.fail("ports", "find out which process has it (ss -tulpn), end it, or give another address with "+p.flag,
			"the %s %s cannot be had: %v", p.what, p.addr, err)
	}
	if free {
		d.ok("ports", "free for the process to take")
	}
}

// portTaken tells why a port cannot be listened on; an address that is another's,
// as behind NAT, says nothing.
func portTaken(addr string, packets bool) error {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		l.Close()
		if !packets {
			return nil
		}
		var c net.PacketConn
		if c, err = net.ListenPacket("udp", addr); err == nil {
			return c.Close()
		}
	}
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

// lookAtUIPort tells whether a server's UI takes connections.
func (d *diagnosis) lookAtUIPort(ctx context.Context, running nodekit.RunningNode) {
	if running.HTTP == "" {
		return // an agent, or a server of an older version
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", running.HTTP)
	if err != nil {
		d.fail("UI port", "is it filtered on this host itself? Else look at the server's log", "%s does not take connections: %v", running.HTTP, err)
		return
	}
	conn.Close()
	d.ok("UI port", "%s takes connections", running.HTTP)
}

// lookAtClock holds this host's clock against that of servers while no process
// runs: by the date in the header of any answer, whose second does.
func (d *diagnosis) lookAtClock(ctx context.Context, creds identity.Credentials) {
	servers := creds.Servers[:min(len(creds.Servers), maxDials)]
	client := nodeport.Client(func() identity.Credentials { return creds }, nodekit.AnyMember)
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	var skews []time.Duration
	for _, addr := range servers {
		asked.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+nodekit.PathSelf, nil)
			if err != nil {
				return
			}
			resp, err := client.Do(req)
			if err != nil {
				return // the node ports are looked at by themselves
			}
			resp.Body.Close()
			if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
				mu.Lock()
				defer mu.Unlock()
				skews = append(skews, time.Until(at))
			}
		})
	}
	asked.Wait()
	d.tellClock(skews)
}

// tellClock judges what servers' clocks are ahead of this host's.
func (d *diagnosis) tellClock(skews []time.Duration) {
	if len(skews) == 0 {
		return
	}
	worst := slices.MaxFunc(skews, func(a, b time.Duration) int { return int(a.Abs() - b.Abs()) })
	servers := strconv.Itoa(len(skews)) + " servers"
	if len(skews) == 1 {
		servers = "1 server"
	}
	if worst.Abs() > skewWarning {
		d.warn("clock", "set the clocks by NTP: certificates and orders carry times", "up to %v off that of %s", worst.Abs().Round(time.Second), servers)
		return
	}
	d.ok("clock", "within %v of that of %s", max(time.Second, worst.Abs().Round(time.Second)), servers)
}
