package artifact

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// shaped is hosts in network namespaces, each with a link of the same rate in both
// directions, through one switch. Host 0 is the seed.
type shaped struct {
	t     *testing.T
	name  string // prefix of the namespaces
	hosts int    // without the seed
	dir   string // in memory, so that no disk is measured
}

const (
	// What leaves a host at once is as much as segmentation offload makes of it: a
	// trade between a wire's smoothness and what two cores can do for all hosts.
	linkBurst   = 32 << 10 // bytes
	fastSegment = 32 << 10 // bytes, from fastMbit on
	slowSegment = 16 << 10
	fastMbit    = 50
	linkQueue   = 128 << 10 // bytes
	benchPort   = "7947"
)

func newShaped(t *testing.T, hosts, mbit int) *shaped {
	dir, err := os.MkdirTemp("/dev/shm", "moult-distribution-")
	if err != nil {
		t.Fatal(err)
	}
	s := &shaped{t: t, name: fmt.Sprintf("md%d-", os.Getpid()), hosts: hosts, dir: dir}
	t.Cleanup(func() {
		for i := -1; i <= hosts; i++ {
			_ = exec.Command("ip", "netns", "del", s.ns(i)).Run()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	segment := slowSegment
	if mbit >= fastMbit {
		segment = fastSegment
	}
	hub := s.ns(-1)
	s.run("ip", "netns", "add", hub)
	s.run("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
	s.run("ip", "-n", hub, "addr", "add", "10.77.255.254/16", "dev", "br0")
	s.run("ip", "-n", hub, "link", "set", "br0", "up")
	for i := range hosts + 1 {
		ns, port := s.ns(i), fmt.Sprintf("p%d", i)
		s.run("ip", "netns", "add", ns)
		s.run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "h0", "netns", ns)
		s.run("ip", "-n", hub, "link", "set", port, "master", "br0", "up", "gso_max_size", fmt.Sprint(segment))
		s.run("ip", "-n", ns, "addr", "add", s.ip(i)+"/16", "dev", "h0")
		s.run("ip", "-n", ns, "link", "set", "h0", "up", "gso_max_size", fmt.Sprint(segment))
		s.run("ip", "-n", ns, "link", "set", "lo", "up")
		s.run("ip", "netns", "exec", ns, "sysctl", "-qw", fmt.Sprintf("net.ipv4.tcp_min_tso_segs=%d", segment/1500))
		for ns, dev := range map[string]string{hub: port, ns: "h0"} {
			rate := fmt.Sprintf("%dmbit", mbit)
			s.run("tc", "-n", ns, "qdisc", "add", "dev", dev, "root", "handle", "1:", "htb", "default", "1")
			s.run("tc", "-n", ns, "class", "add", "dev", dev, "parent", "1:", "classid", "1:1", "htb", "rate", rate, "ceil", rate,
				"burst", fmt.Sprint(linkBurst), "cburst", fmt.Sprint(linkBurst))
			s.run("tc", "-n", ns, "qdisc", "add", "dev", dev, "parent", "1:1", "bfifo", "limit", fmt.Sprint(linkQueue))
		}
	}
	return s
}

// ns is the namespace of a host; of the switch for -1.
func (s *shaped) ns(i int) string { return fmt.Sprintf("%s%d", s.name, i+1) }

func (s *shaped) ip(i int) string { return fmt.Sprintf("10.77.%d.%d", i/200, i%200+1) }

func (s *shaped) addr(i int) string { return s.ip(i) + ":" + benchPort }

func (s *shaped) run(name string, args ...string) {
	s.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// in is a command that runs on a host.
func (s *shaped) in(i int, name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", s.ns(i), name}, args...)...)
}

// hostDir makes a host's directory anew.
func (s *shaped) hostDir(i int) string {
	s.t.Helper()
	dir := filepath.Join(s.dir, fmt.Sprintf("h%d", i))
	if err := os.RemoveAll(dir); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return dir
}
