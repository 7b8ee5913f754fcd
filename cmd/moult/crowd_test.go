//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"moult/cmd/internal/nodekit"
	"moult/mesh"
	"moult/mesh/identity"
)

// crowdCommand is this test binary's name as the rest of a pool: members of the
// mesh that joined with tokens and gossip over real sockets, many in one process.
const crowdCommand = "moult-crowd"

// startCrowd has so many further members join a cluster, until the test ends.
func startCrowd(c *testCluster, members int) {
	c.t.Helper()
	var plan devPlan
	must(c.t, json.Unmarshal([]byte(c.read("dev.json")), &plan))
	self, err := os.Executable()
	must(c.t, err)
	cmd := exec.Command(self)
	cmd.Args = []string{crowdCommand, c.t.TempDir(), strconv.Itoa(members), loopback(), plan.Servers[0].Peer}
	cmd.Env = append(os.Environ(), "MOULT_ADDR="+strings.Join(c.client.addrs, ","), "MOULT_TOKEN="+c.client.token, "GOGC=400")
	startUntilUp(c.t, cmd)
}

// crowdMain is the process that startCrowd starts: DIR MEMBERS ADDRESS JOIN.
func crowdMain() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	dir, address, join := os.Args[1], os.Args[3], os.Args[4]
	members, err := strconv.Atoi(os.Args[2])
	for i := 0; i < members && err == nil; i++ {
		name := fmt.Sprintf("crowd-%d", i+1)
		err = joinCrowd(ctx, name, filepath.Join(dir, name), address, join)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1)
	}
	fmt.Println("up")
	<-ctx.Done()
	stop()
}

// joinCrowd enrols one host and has it be a member.
func joinCrowd(ctx context.Context, name, data, address, join string) error {
	c := &client{addrs: strings.Split(os.Getenv("MOULT_ADDR"), ","), token: os.Getenv("MOULT_TOKEN"), http: http.DefaultClient}
	var token struct{ Token string }
	if err := c.call(ctx, http.MethodPost, "/api/join-tokens", map[string]any{"role": "agent"}, &token); err != nil {
		return err
	}
	gossip, err := freePort(address)
	if err != nil {
		return err
	}
	peer, err := freePort(address) // a node port that nobody asks
	if err != nil {
		return err
	}
	o := nodekit.NodeOptions{Build: thisBuild(), Data: data, Name: name, Gossip: gossip, Peer: peer, Join: []string{join}, Token: token.Token}
	ids, err := identity.OpenStore(filepath.Join(data, "identity"))
	if err != nil {
		return err
	}
	if err := o.FindAddresses(ids); err != nil {
		return err
	}
	creds, err := nodekit.Enrol(ctx, ids, o, "", nil)
	if err != nil {
		return err
	}
	pools, err := o.Pools(creds)
	if err != nil {
		return err
	}
	_, err = mesh.Start(ctx, mesh.Config{
		Identity: creds.Identity, Key: creds.Key, CertDER: creds.CertDER(), Verifier: creds.Verifier(), Boot: 1,
		OS: runtime.GOOS, Arch: runtime.GOARCH, Version: versionA, Digest: strings.Repeat("0", 64), PeerAddr: o.PeerAdv,
		HostsPerAddress: manyHosts, Pools: pools,
	})
	return err
}

func freePort(address string) (string, error) {
	l, err := listenOnNodePort(address)
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// manyHosts share an address where a pool is on one machine.
const manyHosts = 1000

// startUntilUp starts a process until the test ends, and returns what it says after
// the word up.
func startUntilUp(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	said, ok := strings.CutPrefix(strings.TrimSpace(line), "up")
	if !ok {
		t.Fatalf("%s does not come up: %q, %v", cmd.Args[0], line, err)
	}
	return strings.TrimSpace(said)
}
