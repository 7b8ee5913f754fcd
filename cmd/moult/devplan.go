package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
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
	return p, writeFileAtomic(path, text, 0o600)
}

// grow adds nodes until there are as many as asked for. Node ports come from
// the kernel; they are held until all are chosen, so that none is given twice.
func (p *devPlan) grow(o devOptions) error {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			l.Close()
		}
	}()
	free := func() (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
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
