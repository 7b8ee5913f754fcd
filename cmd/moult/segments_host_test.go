//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// segmentedHost is one host.
type segmentedHost struct {
	n        *segmentedNet
	name     string
	number   int
	segments []string
	flags    []string // more that its process is started with, now and again
	proc     *exec.Cmd
	ended    chan struct{}
}

func (h *segmentedHost) namespace() string { return h.n.prefix + h.name }

// addr is the host's IP address in a segment.
func (h *segmentedHost) addr(segment string) string {
	return fmt.Sprintf("10.77.%d.%d", h.n.segmentNumber(segment), h.number)
}

func (h *segmentedHost) mac(segment string) string {
	return fmt.Sprintf("02:00:00:00:%02x:%02x", h.n.segmentNumber(segment), h.number)
}

// introduce tells a host where another one is in a segment, so that it does not ask
// by ARP. What is learnt goes into a table that all namespaces of the machine share,
// and when others fill it, as a thousand hosts elsewhere do, packets are lost here.
// What is told takes no place in it.
func (h *segmentedHost) introduce(other *segmentedHost, segment string) {
	h.n.t.Helper()
	h.n.ip("-n", h.namespace(), "neigh", "replace", other.addr(segment), "lladdr", other.mac(segment), "nud", "permanent",
		"dev", fmt.Sprintf("seg%d", h.n.segmentNumber(segment)))
}

// port is the host's node port as the members of a segment reach it.
func (h *segmentedHost) port(segment string) string {
	return net.JoinHostPort(h.addr(segment), nodePort)
}

// in runs a command in the host's namespace.
func (h *segmentedHost) in(args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", h.namespace()}, args...)...)
}

// nft changes the rules.
func (h *segmentedHost) nft(rules string) {
	h.n.t.Helper()
	cmd := h.in("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.n.t.Fatalf("nft on %s: %v: %s\n%s", h.name, err, out, rules)
	}
}

// cut severs a host from segments, both ways, until heal.
func (h *segmentedHost) cut(segments ...string) {
	h.n.t.Helper()
	var rules string
	for _, s := range segments {
		dev := fmt.Sprintf("seg%d", h.n.segmentNumber(s))
		rules += fmt.Sprintf("add rule inet moult filter_in iifname %q drop\nadd rule inet moult filter_out oifname %q drop\n", dev, dev)
	}
	h.nft(rules)
}

// refuse lets nothing through that comes from another host in a segment, but what
// answers this host: a filter in one direction.
func (h *segmentedHost) refuse(from *segmentedHost, segment string) {
	h.n.t.Helper()
	h.nft(fmt.Sprintf("add rule inet moult filter_in ip saddr %s ct state new drop\n", from.addr(segment)))
}

// heal takes all filters of a host away.
func (h *segmentedHost) heal() {
	h.n.t.Helper()
	h.nft("flush chain inet moult filter_in\nflush chain inet moult filter_out\n")
}

// traffic is how many bytes came in and went out by a segment's interface since
// the host was made.
func (h *segmentedHost) traffic(segment string) (in, out int64) {
	h.n.t.Helper()
	text, err := h.in("nft", "-j", "list", "counters", "table", "inet", "moult").Output()
	if err != nil {
		h.n.t.Fatalf("read the counters of %s: %v", h.name, err)
	}
	var answer struct {
		Nftables []struct {
			Counter struct {
				Name  string
				Bytes int64
			}
		}
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		h.n.t.Fatalf("read the counters of %s: %v: %s", h.name, err, text)
	}
	dev := fmt.Sprintf("seg%d", h.n.segmentNumber(segment))
	for _, e := range answer.Nftables {
		switch e.Counter.Name {
		case "in_" + dev:
			in = e.Counter.Bytes
		case "out_" + dev:
			out = e.Counter.Bytes
		}
	}
	return in, out
}

// inNamespace runs f with its thread in the host's network.
func (h *segmentedHost) inNamespace(f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		return err
	}
	defer own.Close()
	there, err := os.Open("/run/netns/" + h.namespace())
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, back) // and the thread is not used again
	}
	runtime.UnlockOSThread()
	return err
}

// httpClient calls servers from the network of this host.
func (h *segmentedHost) httpClient(roots *x509.CertPool) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots},
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = h.inNamespace(func() error { // an IP address: the socket is made on this thread
				conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
}

// start runs moult on the host until the test ends, or stop.
func (h *segmentedHost) start(args ...string) {
	h.n.t.Helper()
	dir := filepath.Join(h.n.dir, h.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		h.n.t.Fatal(err)
	}
	moult := filepath.Join(dir, "moult")
	if _, err := os.Stat(moult); err != nil {
		if err := copyExecutable(binary(h.n.t, versionA), moult); err != nil {
			h.n.t.Fatal(err)
		}
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.n.t.Fatal(err)
	}
	defer log.Close()
	cmd := h.in(append([]string{moult}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		h.n.t.Fatalf("start %s: %v", h.name, err)
	}
	// `ip netns exec` becomes the command: its process is moult's.
	if err := os.WriteFile(filepath.Join(dir, "pid"), fmt.Appendf(nil, "%d\n", cmd.Process.Pid), 0o600); err != nil {
		h.n.t.Fatal(err)
	}
	ended := make(chan struct{})
	h.proc, h.ended = cmd, ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
}

// running tells whether the host's process has not ended.
func (h *segmentedHost) running() bool {
	if h.proc == nil {
		return false
	}
	select {
	case <-h.ended:
		return false
	default:
		return true
	}
}

// stop ends the host's process as a service manager does.
func (h *segmentedHost) stop() {
	if h.proc == nil {
		return
	}
	_ = h.proc.Process.Signal(syscall.SIGTERM) // gone already, perhaps
	select {
	case <-h.ended:
	case <-time.After(30 * time.Second):
		h.n.t.Errorf("%s does not end on SIGTERM", h.name)
		h.kill()
	}
	h.proc = nil
}

// kill ends all processes of the host at once, as a power cut does.
func (h *segmentedHost) kill() {
	out, err := exec.Command("ip", "netns", "pids", h.namespace()).Output()
	if err != nil {
		h.n.t.Fatalf("list the processes of %s: %v", h.name, err)
	}
	for _, text := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(text); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	<-h.ended
}

// args are what each process is started with: its data directory and where it
// listens in each of its segments.
func (h *segmentedHost) args(role string) []string {
	home := h.segments[0]
	peer := h.port(home)
	args := []string{role, "--data", filepath.Join(h.n.dir, h.name, "data"), "--name", h.name, "--gossip", net.JoinHostPort(h.addr(home), gossipPort)}
	for _, s := range h.segments[1:] {
		args = append(args, "--also-segment", s+"="+net.JoinHostPort(h.addr(s), gossipPort))
		peer = "0.0.0.0:" + nodePort
	}
	if role == "agent" {
		args = append(args, "--binary", filepath.Join(h.n.dir, h.name, "moult"), "--soak", "500ms")
	} else {
		args = append(args, "--http", net.JoinHostPort(h.addr(home), uiPort))
	}
	return append(append(args, "--peer", peer), h.flags...)
}

// sharedWith is a segment that both hosts are in.
func (h *segmentedHost) sharedWith(other *segmentedHost) string {
	h.n.t.Helper()
	for _, s := range h.segments {
		for _, o := range other.segments {
			if s == o {
				return s
			}
		}
	}
	h.n.t.Fatalf("%s and %s share no segment", h.name, other.name)
	return ""
}

// doctor runs `moult doctor` on the host and returns its findings, healthy or not.
func (h *segmentedHost) doctor() (d diagnosis) {
	h.n.t.Helper()
	out, err := h.in(filepath.Join(h.n.dir, h.name, "moult"), "doctor", "--json", "--data", filepath.Join(h.n.dir, h.name, "data")).Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.n.t.Fatal(err)
	}
	if err := json.Unmarshal(out, &d); err != nil {
		h.n.t.Fatalf("moult doctor on %s: %v: %s", h.name, err, out)
	}
	return d
}
