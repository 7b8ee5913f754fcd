package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
)

// A node of `moult dev` that starts again needs its own ports: no outgoing
// connection may have taken them meanwhile, and no other node.
func TestDevPortsStayFree(t *testing.T) {
	t.Parallel()
	var p devPlan
	must(t, p.grow(devOptions{http: "127.0.0.1:0", servers: 3, agents: 20}))
	var ports []int
	for _, n := range slices.Concat(p.Servers, p.Agents) {
		for _, addr := range []string{n.Gossip, n.Peer} {
			host, text, err := net.SplitHostPort(addr)
			must(t, err)
			port, err := strconv.Atoi(text)
			must(t, err)
			if host != "127.0.0.1" || port < lowestDevPort || port > highestDevPort || slices.Contains(ports, port) {
				t.Errorf("%s is at %s, want its own port from %d to %d on loopback", n.Name, addr, lowestDevPort, highestDevPort)
			}
			ports = append(ports, port)
		}
	}
	if runtime.GOOS != "linux" {
		return
	}
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	must(t, err)
	var low, high int
	_, err = fmt.Sscan(string(text), &low, &high)
	must(t, err)
	if highestDevPort >= low {
		t.Errorf("ports up to %d are chosen; the kernel takes those from %d to %d for outgoing connections", highestDevPort, low, high)
	}
}

// The nodes are on the address of loopback that the UI is on, and never where
// others reach them.
func TestDevNodesAreOnLoopback(t *testing.T) {
	t.Parallel()
	for http, want := range map[string]string{"127.0.0.2:0": "127.0.0.2", "0.0.0.0:0": "127.0.0.1", "localhost:0": "127.0.0.1"} {
		if want == "127.0.0.2" && runtime.GOOS != "linux" {
			continue // elsewhere it has to be set up first
		}
		var p devPlan
		must(t, p.grow(devOptions{http: http, servers: 1, agents: 1}))
		for _, addr := range []string{p.Servers[0].Gossip, p.Servers[0].Peer, p.Agents[0].Gossip, p.Agents[0].Peer} {
			if host, _, _ := net.SplitHostPort(addr); host != want {
				t.Errorf("--http %s: a node at %s, want %s", http, addr, want)
			}
		}
	}
}
