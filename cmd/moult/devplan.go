package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"moult/cmd/internal/nodekit"
)

// devNode is one process of a `moult dev` cluster and where it listens.
type devNode struct {
	Name   string `json:"name"`
	Gossip string `json:"gossip"`
	Peer   string `json:"peer"`
	HTTP   string `json:"http,omitempty"`
}

// devPlan is who runs where. It is kept in DIR/dev.json, so that the same
// cluster can be started again.
type devPlan struct {
	Servers []devNode `json:"servers"`
	Agents  []devNode `json:"agents"`

	serverArgs, agentArgs []string
}

// loadDevPlan returns the plan of an existing directory, grown to what o asks
// for, or a new one.
func loadDevPlan(dir string, o devOptions) (devPlan, error) {
	var p devPlan
	path := filepath.Join(dir, "dev.json")
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(text, &p); err != nil {
			return p, fmt.Errorf("%s: %w; remove %s to start afresh", path, err, dir)
		}
		if len(p.Servers) > 0 && len(p.Servers) != o.servers {
			return p, fmt.Errorf("%s holds a cluster of %d servers, not %d; give --servers %d, or another --data",
				dir, len(p.Servers), o.servers, len(p.Servers))
		}
	case !os.IsNotExist(err):
		return p, err
	}
	if err := p.grow(o); err != nil {
		return p, err
	}
	p.serverArgs, p.agentArgs = o.serverArgs, o.agentArgs
	text, err = json.MarshalIndent(p, "", "  ")
	if err != nil {
		return p, err
	}
	return p, nodekit.WriteFileAtomic(path, text, 0o600)
}

// grow adds nodes until there are as many as asked for. Ports are held until all
// are chosen, so that none is given twice.
func (p *devPlan) grow(o devOptions) error {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	host, portText, err := net.SplitHostPort(o.http)
	if err != nil {
		return fmt.Errorf("--http %q: give HOST:PORT, such as 127.0.0.1:8480", o.http)
	}
	port, err := strconv.Atoi(portText)
	if err != nil || port < 0 || port > 65535 {
		return fmt.Errorf("--http %q: the port is a number from 0 to 65535", o.http)
	}
	if len(p.Servers) > 0 {
		port = 0
	}
	inner := "127.0.0.1" // nodes are on loopback, on the UI's address if that is one
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		inner = host
	}
	free := func() (string, error) {
		l, err := listenOnNodePort(inner)
		if err != nil {
			return "", err
		}
		held = append(held, l)
		return l.Addr().String(), nil
	}
	node := func(name string) (n devNode, err error) {
		n.Name = name
		if n.Gossip, err = free(); err == nil {
			n.Peer, err = free()
		}
		return n, err
	}
	for i := len(p.Servers); i < o.servers; i++ {
		n, err := node(fmt.Sprintf("server-%d", i+1))
		if err != nil {
			return err
		}
		l, err := listenFrom(host, port, i == 0)
		if err != nil {
			return err
		}
		held = append(held, l)
		n.HTTP = l.Addr().String()
		if port != 0 {
			port = l.Addr().(*net.TCPAddr).Port + 1
		}
		p.Servers = append(p.Servers, n)
	}
	for i := len(p.Agents); i < o.agents; i++ {
		n, err := node(fmt.Sprintf("agent-%d", i+1))
		if err != nil {
			return err
		}
		p.Agents = append(p.Agents, n)
	}
	return nil
}

// Node ports of `moult dev`. Kernels take the ports of outgoing connections from
// above them: a node that starts again finds its own still free.
const (
	lowestDevPort  = 20000
	highestDevPort = 32000
)

// listenOnNodePort takes a port that is free for TCP and UDP.
func listenOnNodePort(host string) (net.Listener, error) {
	const tries = 100
	var err error
	for range tries {
		addr := net.JoinHostPort(host, strconv.Itoa(lowestDevPort+rand.IntN(highestDevPort-lowestDevPort+1)))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err != nil {
			continue
		}
		var datagrams net.PacketConn
		if datagrams, err = net.ListenPacket("udp", addr); err != nil {
			l.Close()
			continue
		}
		_ = datagrams.Close()
		return l, nil
	}
	return nil, fmt.Errorf("no free port from %d to %d on %s: %w", lowestDevPort, highestDevPort, host, err)
}

// listenFrom takes the port, or unless exact the next free one above it.
func listenFrom(host string, port int, exact bool) (net.Listener, error) {
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			return l, nil
		}
		if exact || port == 0 || port >= 65535 {
			return nil, fmt.Errorf("--http %s: %w; give another address", net.JoinHostPort(host, strconv.Itoa(port)), err)
		}
		port++
	}
	return nil, fmt.Errorf("no free port below %d on %s; give another --http", port, host)
}
