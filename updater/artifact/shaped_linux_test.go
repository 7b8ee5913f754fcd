package artifact

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"moult/testdata/shapedlink"
)

// shaped is hosts in network namespaces, each with a link of the same rate in both
// directions, through one switch. Host 0 is the seed. TCP's congestion control is
// cubic, Linux's default, for all programs, whatever the machine's is.
type shaped struct {
	t     *testing.T
	name  string // prefix of the namespaces
	hosts int    // without the seed
	dir   string // in memory, so that no disk is measured
}

const benchPort = "7947"

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
	hub := s.ns(-1)
	s.run("ip", "netns", "add", hub)
	s.run("ip", "-n", hub, "link", "add", "br0", "address", s.mac(-1), "type", "bridge")
	s.run("ip", "-n", hub, "addr", "add", s.ip(-1)+"/16", "dev", "br0")
	s.run("ip", "-n", hub, "link", "set", "br0", "up")
	for i := range hosts + 1 {
		ns, port := s.ns(i), fmt.Sprintf("p%d", i)
		s.run("ip", "netns", "add", ns)
		s.run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "h0", "address", s.mac(i), "netns", ns)
		s.run("ip", "-n", hub, "link", "set", port, "master", "br0", "up")
		s.run("ip", "-n", ns, "addr", "add", s.ip(i)+"/16", "dev", "h0")
		s.run("ip", "-n", ns, "link", "set", "h0", "up")
		s.run("ip", "-n", ns, "link", "set", "lo", "up")
		s.run("ip", "-n", ns, "route", "replace", "10.77.0.0/16", "dev", "h0", "proto", "kernel", "scope", "link", "src", s.ip(i),
			"congctl", cmp.Or(os.Getenv("MOULT_DISTRIBUTION_CC"), "cubic"))
		if err := shapedlink.Shape(mbit, shapedlink.End{Namespace: ns, Device: "h0"}, shapedlink.End{Namespace: hub, Device: port}); err != nil {
			t.Fatal(err)
		}
	}
	s.introduce()
	return s
}

// introduce tells each host where all the others are, so that none has to ask by
// ARP. What is learnt goes into a table of 1,024 places that all namespaces of the
// machine share, and 64 hosts that all talk to each other take 4,096: it runs over,
// and packets are lost here, and in whatever other network namespaces there are.
// What is told takes no place in it.
func (s *shaped) introduce() {
	for i := -1; i <= s.hosts; i++ {
		dev := "h0"
		if i < 0 {
			dev = "br0"
		}
		var entries strings.Builder
		for j := -1; j <= s.hosts; j++ {
			if j != i {
				fmt.Fprintf(&entries, "neigh replace %s lladdr %s nud permanent dev %s\n", s.ip(j), s.mac(j), dev)
			}
		}
		cmd := exec.Command("ip", "-n", s.ns(i), "-batch", "-")
		cmd.Stdin = strings.NewReader(entries.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("tell host %d of the others: %v: %s", i, err, out)
		}
	}
}

// learnt is what hosts have found out by ARP nevertheless.
func (s *shaped) learnt() (entries []string) {
	s.t.Helper()
	for i := -1; i <= s.hosts; i++ {
		out, err := exec.Command("ip", "-n", s.ns(i), "-4", "neigh", "show").Output()
		if err != nil {
			s.t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "PERMANENT") {
				entries = append(entries, fmt.Sprintf("host %d: %s", i, strings.TrimSpace(line)))
			}
		}
	}
	return entries
}

// ns is the namespace of a host; of the switch for -1.
func (s *shaped) ns(i int) string { return fmt.Sprintf("%s%d", s.name, i+1) }

// ip is a host's address, and the switch's own for -1: a tracker is there.
func (s *shaped) ip(i int) string {
	if i < 0 {
		return "10.77.255.254"
	}
	return fmt.Sprintf("10.77.%d.%d", i/200, i%200+1)
}

func (s *shaped) mac(i int) string { return fmt.Sprintf("02:00:00:00:%02x:%02x", (i+1)>>8, (i+1)&0xff) }

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
