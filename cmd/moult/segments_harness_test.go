//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/testdata/shapedlink"
)

// The tests of segmented networks run real processes, each host in a network
// namespace of its own. A segment is a bridge, in one more namespace that stands
// for the switches; between segments nothing is routed. What passes a host's
// interfaces is counted, and filtered, by nftables in that host's namespace.
//
//	segmented network "switch":   bridge seg1 ── veth ── namespace of server-1, interface seg1
//	                                          ── veth ── namespace of relay-1,  interface seg1
//	                              bridge seg2 ── veth ── namespace of relay-1,  interface seg2
//
// Nothing of it is in the machine's own namespace but the names, and those go
// with the test.

// segmentedNet is such a network and the cluster in it.
type segmentedNet struct {
	*testCluster
	prefix   string // of the namespaces' names
	segments []string
	mbit     int // rate of each host's links, both ways; 0: not shaped
	hosts    map[string]*segmentedHost
	order    []*segmentedHost
}

const (
	namespacePrefix = "moult-test-"
	gossipPort      = "7946"
	nodePort        = "7947"
	uiPort          = "8480"
)

var (
	networks  atomic.Int64 // that this process made: their names hold the number
	sweepOnce sync.Once    // for the namespaces of earlier processes
)

// newSegmentedNet makes an empty network, until the test ends. Networks know nothing
// of each other, and the stories wait most of the time: they run in parallel.
func newSegmentedNet(t *testing.T, segments ...string) *segmentedNet {
	t.Helper()
	t.Parallel()
	return makeSegmentedNet(t, segments...)
}

// makeSegmentedNet is newSegmentedNet for what runs alone.
func makeSegmentedNet(t *testing.T, segments ...string) *segmentedNet {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root: run the tests as root to have the ones of segmented networks")
	}
	for tool, pkg := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%v; install the package %s", err, pkg)
			}
			t.Skipf("%v; install the package %s to have the tests of segmented networks", err, pkg)
		}
	}
	sweepOnce.Do(func() { sweepNamespaces(t) })
	n := &segmentedNet{
		testCluster: &testCluster{t: t, dir: filepath.Join(t.TempDir(), "cluster")},
		prefix:      fmt.Sprintf("%s%d-%d-", namespacePrefix, os.Getpid(), networks.Add(1)), segments: segments, hosts: map[string]*segmentedHost{},
	}
	t.Cleanup(n.remove)
	if out, err := exec.Command("ip", "netns", "add", n.prefix+"switch").CombinedOutput(); err != nil {
		t.Skipf("no network namespace can be made here: %s", bytes.TrimSpace(out))
	}
	for i := range segments {
		n.ip("-n", n.prefix+"switch", "link", "add", fmt.Sprintf("seg%d", i+1), "type", "bridge", "forward_delay", "0")
		n.ip("-n", n.prefix+"switch", "link", "set", fmt.Sprintf("seg%d", i+1), "up")
	}
	return n
}

// sweepNamespaces removes what tests left behind that were killed: the name holds
// the process that made it.
func sweepNamespaces(t *testing.T) {
	out, err := exec.Command("ip", "netns", "list").Output()
	if err != nil {
		t.Skipf("network namespaces cannot be listed: %v", err)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		name, _, _ := strings.Cut(line, " ")
		if ofDeadTest(name) {
			removeNamespace(t, name)
		}
	}
}

// removeNamespace ends what runs in a namespace, and takes it away with its
// interfaces.
func removeNamespace(t testing.TB, name string) {
	out, err := exec.Command("ip", "netns", "pids", name).Output()
	if err != nil {
		return // it is not there
	}
	for _, text := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(text); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already, perhaps
		}
	}
	if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
		t.Errorf("remove namespace %s: %s", name, out)
	}
}

// remove ends all processes, then takes the network away, and fails the test when
// something of it is left.
func (n *segmentedNet) remove() {
	for i := len(n.order) - 1; i >= 0; i-- {
		n.order[i].stop()
	}
	n.noRaces()
	if n.t.Failed() {
		n.dumpLogs()
	}
	for _, h := range n.order {
		removeNamespace(n.t, h.namespace())
	}
	removeNamespace(n.t, n.prefix+"switch")
	if out, err := exec.Command("ip", "netns", "list").Output(); err != nil || strings.Contains(string(out), n.prefix) {
		n.t.Errorf("namespaces are left: %s %v", out, err)
	}
}

func (n *segmentedNet) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// number is that of a segment, from 1.
func (n *segmentedNet) segmentNumber(segment string) int {
	n.t.Helper()
	for i, s := range n.segments {
		if s == segment {
			return i + 1
		}
	}
	n.t.Fatalf("there is no segment %s", segment)
	return 0
}

// host makes a host in some segments, the home segment first. Nothing runs on it
// yet.
func (n *segmentedNet) host(name string, segments ...string) *segmentedHost {
	n.t.Helper()
	h := &segmentedHost{n: n, name: name, number: len(n.order) + 1, segments: segments}
	n.hosts[name], n.order = h, append(n.order, h)
	ns := h.namespace()
	n.ip("netns", "add", ns)
	n.ip("-n", ns, "link", "set", "lo", "up")
	rules := "table inet moult {\n"
	var in, out, outRules, inRules string
	for _, s := range segments {
		k := n.segmentNumber(s)
		dev, port := fmt.Sprintf("seg%d", k), fmt.Sprintf("p%d-%d", k, h.number)
		n.ip("link", "add", dev, "netns", ns, "address", h.mac(s), "type", "veth", "peer", "name", port, "netns", n.prefix+"switch")
		n.ip("-n", n.prefix+"switch", "link", "set", port, "master", dev, "up")
		n.ip("-n", ns, "addr", "add", h.addr(s)+"/24", "dev", dev)
		n.ip("-n", ns, "link", "set", dev, "up")
		if n.mbit > 0 {
			must(n.t, shapedlink.Shape(n.mbit, shapedlink.End{Namespace: ns, Device: dev}, shapedlink.End{Namespace: n.prefix + "switch", Device: port}))
		}
		for _, other := range n.order {
			if other != h && slices.Contains(other.segments, s) {
				h.introduce(other, s)
				other.introduce(h, s)
			}
		}
		in += fmt.Sprintf("counter in_%s { }\n", dev)
		out += fmt.Sprintf("counter out_%s { }\n", dev)
		inRules += fmt.Sprintf("iifname %q counter name in_%s\n", dev, dev)
		outRules += fmt.Sprintf("oifname %q counter name out_%s\n", dev, dev)
	}
	// Counted before the filter: what a cut keeps away was on the link.
	rules += in + out + "chain count_in { type filter hook input priority -10; policy accept;\n" + inRules + "}\n" +
		"chain count_out { type filter hook output priority 10; policy accept;\n" + outRules + "}\n" +
		"chain filter_in { type filter hook input priority 0; policy accept; }\n" +
		"chain filter_out { type filter hook output priority 0; policy accept; }\n}\n"
	h.nft(rules)
	return h
}

// startServers runs servers that are in the home segment, and makes the cluster's
// client.
func (n *segmentedNet) startServers(count int, args ...string) {
	n.t.Helper()
	home := n.segments[0]
	for i := range count {
		h := n.host(fmt.Sprintf("server-%d", i+1), home)
		argv := append(h.args("server"), args...)
		if i == 0 {
			h.start(append(argv, "--bootstrap")...)
			n.adopt(h)
			continue
		}
		h.start(append(argv, "--join", n.hosts["server-1"].port(home), "--token-file", n.token(h, "server", home))...)
		n.client.addrs = append(n.client.addrs, "https://"+net.JoinHostPort(h.addr(home), uiPort))
	}
	n.await(time.Minute, "the servers to be voters", func() error {
		servers, err := n.client.servers(n.t.Context())
		if err != nil {
			return err
		}
		voters := 0
		for _, s := range servers {
			if s.Voter && s.Healthy {
				voters++
			}
		}
		if voters != count {
			return fmt.Errorf("%d of %d are", voters, count)
		}
		return nil
	})
}

// adopt waits for the first server, and takes its secrets.
func (n *segmentedNet) adopt(h *segmentedHost) {
	n.t.Helper()
	var token string
	n.await(time.Minute, h.name+" to make the cluster", func() error {
		if !h.running() {
			n.t.Fatalf("%s ended:\n%s", h.name, n.read(h.name+"/log"))
		}
		text, err := os.ReadFile(filepath.Join(n.dir, h.name, "data", adminTokenFile))
		token = strings.TrimSpace(string(text))
		return err
	})
	addr := "https://" + net.JoinHostPort(h.addr(n.segments[0]), uiPort) // no loopback: over TLS
	n.client = &client{addrs: []string{addr}, token: token, http: h.httpClient(n.uiCA(h))}
	n.within = []string{"ip", "netns", "exec", h.namespace()}
	n.commandEnv = []string{"MOULT_CA=" + filepath.Join(n.dir, h.name, "data", uiCAFile)}
	n.await(time.Minute, h.name+" to be ready", func() error { return n.try(http.MethodGet, "/api/hosts", nil, nil) })
	if err := os.Rename(filepath.Join(n.dir, h.name, "data", releaseKeyFile), filepath.Join(n.dir, "release.key")); err != nil {
		n.t.Fatal(err)
	}
}

// uiCA is what vouches for the servers' UIs, as the first server has it.
func (n *segmentedNet) uiCA(h *segmentedHost) *x509.CertPool {
	n.t.Helper()
	roots := x509.NewCertPool()
	n.await(time.Minute, h.name+" to have the UI's CA", func() error {
		text, err := os.ReadFile(filepath.Join(n.dir, h.name, "data", uiCAFile))
		if err == nil && !roots.AppendCertsFromPEM(text) {
			err = errors.New("it is no certificate")
		}
		return err
	})
	return roots
}

// token makes a join token and returns the file that holds it.
func (n *segmentedNet) token(h *segmentedHost, role, segment string) string {
	n.t.Helper()
	var out struct{ Token string }
	n.await(20*time.Second, "a join token", func() error {
		return n.try(http.MethodPost, "/api/join-tokens", map[string]any{"role": role, "segment": segment}, &out)
	})
	path := filepath.Join(n.dir, h.name, "join.token")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(out.Token), 0o600)); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// startAgent runs an agent that joins through hosts that it shares a segment with;
// the first of its segments is its home.
func (n *segmentedNet) startAgent(name string, segments []string, through []*segmentedHost, args ...string) *segmentedHost {
	n.t.Helper()
	h := n.host(name, segments...)
	h.flags = args
	argv := h.args("agent")
	for _, r := range through {
		argv = append(argv, "--join", r.port(h.sharedWith(r)))
	}
	h.start(append(argv, "--token-file", n.token(h, "agent", segments[0]))...)
	return h
}

// awaitOnline waits until hosts are online in the servers' eyes.
func (n *segmentedNet) awaitOnline(patience time.Duration, names ...string) {
	n.t.Helper()
	n.await(patience, strings.Join(names, ", ")+" to be online", func() error {
		online := n.testCluster.hosts()
		var missing []string
		for _, name := range names {
			if h := n.hosts[name]; !h.running() {
				n.t.Fatalf("%s ended:\n%s", name, n.read(name+"/log"))
			}
			if !online[name].Online {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("not yet: %s", strings.Join(missing, ", "))
		}
		return nil
	})
}

// watchOnline looks all the time, until stop, whether hosts stay online in the
// servers' eyes, and returns what it saw of them otherwise.
func (n *segmentedNet) watchOnline(names ...string) (stop func() []string) {
	ctx, cancel := context.WithCancel(n.t.Context())
	seen := make(chan []string, 1)
	go func() {
		var lapses []string
		for ctx.Err() == nil {
			var out struct{ Hosts []apiHost }
			if err := n.client.call(ctx, http.MethodGet, "/api/hosts", nil, &out); err == nil {
				online := map[string]bool{}
				for _, h := range out.Hosts {
					online[h.Name] = h.Online
				}
				for _, name := range names {
					if !online[name] {
						lapses = append(lapses, time.Now().Format("15:04:05.0 ")+name)
					}
				}
			}
			nodekit.Sleep(ctx, 200*time.Millisecond)
		}
		seen <- lapses
	}()
	return func() []string {
		cancel()
		return <-seen
	}
}
