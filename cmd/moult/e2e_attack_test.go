//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
)

// An attacker's connections to one port: held, and made anew as they end. The pauses
// between two of one address are such that the attackers, who run on the same
// machine, leave it to what they attack: the limits are tested, not the scheduler.
const (
	attackersPerPort    = 4   // addresses
	heldPerAttacker     = 100 // connections
	attackPause         = 20 * time.Millisecond
	heldPerAttackerLong = 150 // the same, in the long form: all together, 18,000 files
	attackPauseLong     = 60 * time.Millisecond
)

// attack is what goes on against a cluster until it is called off.
type attack struct {
	t      *testing.T
	ctx    context.Context
	tasks  sync.WaitGroup
	held   int           // connections, at most, of one address to one port
	pause  time.Duration // between two of one address
	opened atomic.Int64
	sent   atomic.Int64 // UDP packets
}

// from dials from an address of the attacker's own: 127.0.0.0/8 is all loopback.
func (a *attack) from(source, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	return d.DialContext(a.ctx, "tcp", addr)
}

// hold keeps connections to a port open, of which each says a bit now and then.
func (a *attack) hold(addr string, say func(net.Conn)) {
	for i := range attackersPerPort {
		source := fmt.Sprintf("127.6.6.%d", i+1)
		a.tasks.Go(func() {
			var held []net.Conn
			defer func() {
				for _, conn := range held {
					conn.Close()
				}
			}()
			for nodekit.Sleep(a.ctx, a.pause) {
				conn, err := a.from(source, addr)
				if err != nil {
					continue
				}
				a.opened.Add(1)
				_ = conn.SetDeadline(time.Now().Add(time.Second))
				say(conn)
				if held = append(held, conn); len(held) > a.held {
					held[0].Close()
					held = held[1:]
				}
			}
		})
	}
}

// garbage sends packets of all sizes to a gossip port.
func (a *attack) garbage(addr string) {
	a.tasks.Go(func() {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			a.t.Error(err)
			return
		}
		defer conn.Close()
		chacha := rand.NewChaCha8([32]byte{1})
		for nodekit.Sleep(a.ctx, a.pause) {
			b := make([]byte, rand.N(1400))
			_, _ = chacha.Read(b) // never errs
			if len(b) > 2 {
				b[0] = []byte{244, 10, 0, 8, b[0]}[rand.N(5)] // what memberlist's messages begin with, among others
			}
			if _, err := conn.Write(b); err == nil {
				a.sent.Add(1)
			}
		}
	})
}

// on attacks each port of a node with what a stranger can do.
func (a *attack) on(n devNode) {
	half := func(text string) func(net.Conn) {
		return func(conn net.Conn) { _, _ = io.WriteString(conn, text) }
	}
	if n.HTTP != "" {
		a.hold(n.HTTP, half("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "))
		a.hold(n.HTTP, half("POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 8000\r\n\r\nusername="))
		a.hold(n.HTTP, half(""))
	}
	a.hold(n.Peer, half("\x16\x03\x01\x02\x00\x01"))
	a.hold(n.Peer, func(conn net.Conn) { // a join that says nothing after the handshake
		_ = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{identity.ALPNJoin}}).Handshake()
	})
	a.hold(n.Gossip, half("\xf4\x20moult/"))
	a.hold(n.Gossip, half(""))
	a.garbage(n.Gossip)
}

// Strangers hold on to connections and send garbage to each port of each host, and
// a fleet update goes on to its end; people who are signed in see it.
func TestE2EUpdateUnderAttack(t *testing.T) {
	t.Parallel()
	const attacked = 2 // agents
	servers, agents, held, pause := 1, attacked, heldPerAttacker, attackPause
	if os.Getenv("MOULT_LONG") != "" {
		servers, agents, held, pause = 3, 8, heldPerAttackerLong, attackPauseLong
	}
	c := startCluster(t, servers, agents)
	c.publish(versionB, binary(t, versionB))
	password := strings.TrimSpace(c.read("admin.password"))
	_, session := c.signIn(c.client.addrs[0], "admin", password)
	if session == nil {
		t.Fatal("the admin cannot sign in")
	}
	plan := c.plan()

	ctx, callOff := context.WithCancel(t.Context())
	a := &attack{t: t, ctx: ctx, held: held, pause: pause}
	for _, n := range slices.Concat(plan.Servers, plan.Agents[:attacked]) {
		a.on(n)
	}
	c.await(30*time.Second, "the flood to be there", func() error {
		if n := a.opened.Load(); n < 500 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	c.awaitFleetUpdate(c.startFleetUpdate(nil), "completed", 5*time.Minute)
	c.allOn(versionB)
	for _, addr := range c.client.addrs {
		if got := c.status(addr, http.MethodGet, "/api/hosts", session); got != http.StatusOK {
			t.Errorf("under attack %s answers %d", addr, got)
		}
	}
	callOff()
	a.tasks.Wait()
	t.Logf("%d connections were made and %d packets sent meanwhile", a.opened.Load(), a.sent.Load())
	for _, n := range slices.Concat(plan.Servers, plan.Agents) {
		const most = 4 << 20 // bytes: what the attack wrote is not in it
		if info, err := os.Stat(filepath.Join(c.dir, n.Name, "log")); err != nil || info.Size() > most {
			t.Errorf("the log of %s has %d bytes, %v", n.Name, info.Size(), err)
		}
	}
	c.findSecrets(session.Value, password)
	c.privateModes()
}

// privateModes holds what the processes keep to their modes: nobody else enters a
// data directory, and what is a secret in it nobody else could read anyway.
func (c *testCluster) privateModes() {
	c.t.Helper()
	plan, files := c.plan(), 0
	for _, n := range append(plan.Servers, plan.Agents...) {
		data := filepath.Join(c.dir, n.Name, "data")
		err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return nil //nolint:nilerr // gone meanwhile
			}
			files++
			executable := info.Mode()&0o100 != 0 && !d.IsDir() // a binary, which is no secret
			if mode := info.Mode().Perm(); mode&0o077 != 0 && !executable {
				c.t.Errorf("%s has mode %04o", path, mode)
			}
			return nil
		})
		if err != nil {
			c.t.Error(err)
		}
	}
	if files < 20 {
		c.t.Errorf("only %d files were looked at", files)
	}
}

// plan is where each process of the cluster listens.
func (c *testCluster) plan() (p devPlan) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.read("dev.json")), &p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// findSecrets looks for the cluster's secrets where they must not be: in the
// arguments and the environment of its processes, and in their logs.
func (c *testCluster) findSecrets(session, password string) {
	c.t.Helper()
	secrets := map[string]string{
		"session": session, "password": password, "API token": c.client.token,
		"release key": lastLine(c.read("release.key")),
	}
	plan := c.plan()
	var processes []int
	for _, n := range append(plan.Servers, plan.Agents...) {
		pid, err := strconv.Atoi(strings.TrimSpace(c.read(n.Name + "/pid")))
		if err != nil {
			c.t.Fatal(err)
		}
		processes = append(processes, pid)
		processes = append(processes, children(pid)...)
		if text, err := os.ReadFile(filepath.Join(c.dir, n.Name, "join.token")); err == nil {
			secrets["join token of "+n.Name] = string(bytes.TrimSpace(text[bytes.LastIndexByte(text, '.')+1:]))
		}
		key := strings.Split(c.read(n.Name+"/data/identity/key.pem"), "\n")
		secrets["key of "+n.Name] = key[1]
		var cluster struct {
			GossipKeys [][]byte `json:"gossip_keys"`
		}
		if err := json.Unmarshal([]byte(c.read(n.Name+"/data/identity/cluster.json")), &cluster); err != nil || len(cluster.GossipKeys) == 0 {
			c.t.Fatalf("gossip keys of %s: %v", n.Name, err)
		}
		secrets["gossip key"] = base64.StdEncoding.EncodeToString(cluster.GossipKeys[0])
	}
	processes = append(processes, c.dev.Process.Pid)
	places := map[string][]byte{}
	for _, pid := range processes {
		for _, file := range []string{"cmdline", "environ"} {
			path := fmt.Sprintf("/proc/%d/%s", pid, file)
			text, err := os.ReadFile(path)
			if err != nil || file == "cmdline" && !bytes.Contains(text, []byte("moult")) {
				c.t.Fatalf("%s: %q, %v", path, text, err)
			}
			places[path] = text
		}
	}
	for _, n := range append(plan.Servers, plan.Agents...) {
		text := c.read(n.Name + "/log")
		if !strings.Contains(text, "level=INFO") {
			c.t.Errorf("the log of %s is empty", n.Name)
		}
		// The first login is printed to whoever bootstraps; it is no line of the log.
		var lines []string
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "login: ") {
				lines = append(lines, line)
			}
		}
		places["log of "+n.Name] = []byte(strings.Join(lines, ""))
	}
	for what, secret := range secrets {
		if len(secret) < 12 {
			c.t.Errorf("%s: %q is no secret to look for", what, secret)
			continue
		}
		for place, text := range places {
			if bytes.Contains(text, []byte(secret)) {
				c.t.Errorf("%s has the %s", place, what)
			}
		}
	}
	if len(processes) < len(plan.Servers)+2*len(plan.Agents)+1 {
		c.t.Errorf("only %d processes were looked at", len(processes))
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
