package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
)

// Limits of `moult dev`.
const (
	devMaxServers   = 9
	devMaxAgents    = 200
	devReadyTimeout = 90 * time.Second
	devPollInterval = 100 * time.Millisecond
)

type devOptions struct {
	servers, agents int
	http, data      string
	agentArgs       []string
	serverArgs      []string
	json            bool
}

func newDevCommand() *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster on this machine, to try moult out",
		Long: `Run a whole cluster of real processes on loopback, each from its own copy of
this binary under DIR/NAME/ (servers server-1…, agents agent-1…; the log in
DIR/NAME/log, the process id in DIR/NAME/pid). Writes an admin API token to
DIR/admin.token, the release secret key to DIR/release.key and the servers' UI
addresses to DIR/addresses. Ctrl-C ends it; the same command starts the same
cluster again.`,
		Example: `  moult dev
  moult dev --servers 1 --agents 2 --data /tmp/try`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDev(cmd.Context(), o, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().IntVar(&o.servers, "servers", 3, "number of servers: 1, 3 or 5")
	cmd.Flags().IntVar(&o.agents, "agents", 5, "number of agents")
	cmd.Flags().StringVar(&o.http, "http", "127.0.0.1:8480", "UI address of server-1; the others take the next free ports")
	cmd.Flags().StringVar(&o.data, "data", "moult-dev", "where the cluster lives")
	cmd.Flags().StringArrayVar(&o.agentArgs, "agent-arg", nil, "further argument for each agent, such as --agent-arg=--trial-timeout=20s")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON: addresses, login and files, once the cluster is up")
	cmd.Flags().StringArrayVar(&o.serverArgs, "server-arg", nil, "further argument for each server")
	return cmd
}

func (o devOptions) validate() error {
	if o.servers < 1 || o.servers > devMaxServers {
		return fmt.Errorf("--servers is %d; give 1 to %d, best an odd number", o.servers, devMaxServers)
	}
	if o.agents < 0 || o.agents > devMaxAgents {
		return fmt.Errorf("--agents is %d; give 0 to %d", o.agents, devMaxAgents)
	}
	return nil
}

// devCluster is a running `moult dev`.
type devCluster struct {
	dir      string
	plan     devPlan
	log      io.Writer
	procs    []*devProcess
	client   *client
	password string
}

func runDev(ctx context.Context, o devOptions, stdout, stderr io.Writer) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	dir, err := filepath.Abs(o.data)
	if err != nil {
		return err
	}
	unlock, err := nodekit.OpenDataDir(dir, true) // its own cluster, to try out
	if err != nil {
		return err
	}
	defer unlock()
	plan, err := loadDevPlan(dir, o)
	if err != nil {
		return err
	}
	d := &devCluster{dir: dir, plan: plan, log: stderr}
	defer d.stop()
	if err := d.start(ctx); err != nil {
		return err
	}
	if o.json {
		err = printJSON(stdout, d.description())
	} else {
		d.describe(stdout)
	}
	if err != nil {
		return err
	}
	d.wait(ctx)
	fmt.Fprintln(stderr, "stopping")
	return nil
}

// start brings up server-1, then the other servers, then the agents. Servers that
// have joined before come up together: a majority of them has to be there before
// one can lead.
func (d *devCluster) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, devReadyTimeout)
	defer cancel()
	fmt.Fprintf(d.log, "starting %d servers and %d agents in %s\n", len(d.plan.Servers), len(d.plan.Agents), d.dir)
	first := d.plan.Servers[0]
	args := []string{"--bootstrap"}
	if !d.hasJoined(first) {
		args = append(args, "--keep-first-password") // what is printed is to work again and again
	}
	if err := d.launch(first, "server", args...); err != nil {
		return err
	}
	var fresh []devNode
	for _, n := range d.plan.Servers[1:] {
		if !d.hasJoined(n) {
			fresh = append(fresh, n)
		} else if err := d.launchJoining(ctx, n, "server"); err != nil {
			return err
		}
	}
	if err := d.await(ctx, first.Name+" to be ready", func() error { return httpOK(ctx, "http://"+first.HTTP+"/readyz") }); err != nil {
		return err
	}
	if err := d.adoptSecrets(first); err != nil {
		return err
	}
	for _, n := range fresh {
		if err := d.launchJoining(ctx, n, "server"); err != nil {
			return err
		}
	}
	if err := d.await(ctx, "the servers to be voters", func() error { return d.serversHealthy(ctx) }); err != nil {
		return err
	}
	for _, n := range d.plan.Agents {
		if err := d.launchJoining(ctx, n, "agent"); err != nil {
			return err
		}
	}
	return d.await(ctx, "the agents to be online", func() error { return d.agentsOnline(ctx) })
}

// hasJoined tells whether a node needs no token any more.
func (d *devCluster) hasJoined(n devNode) bool {
	_, err := os.Stat(filepath.Join(d.dir, n.Name, "data", "identity", "cluster.json"))
	return err == nil
}

// adoptSecrets moves what the first server made at bootstrap to where the
// person finds it.
func (d *devCluster) adoptSecrets(first devNode) error {
	data := filepath.Join(d.dir, first.Name, "data")
	for _, name := range []string{adminTokenFile, releaseKeyFile, adminPasswordFile} {
		err := os.Rename(filepath.Join(data, name), filepath.Join(d.dir, name))
		if err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("move %s: %w", name, err)
		}
	}
	token, err := os.ReadFile(filepath.Join(d.dir, adminTokenFile))
	if err != nil {
		return fmt.Errorf("read the admin token: %w; remove %s to start afresh", err, d.dir)
	}
	if password, err := os.ReadFile(filepath.Join(d.dir, adminPasswordFile)); err == nil {
		d.password = strings.TrimSpace(string(password))
	}
	var addresses strings.Builder
	var addrs []string
	for _, n := range d.plan.Servers {
		fmt.Fprintf(&addresses, "http://%s\n", n.HTTP)
		addrs = append(addrs, "http://"+n.HTTP)
	}
	d.client = &client{addrs: addrs, token: strings.TrimSpace(string(token)), http: &http.Client{}}
	return nodekit.WriteFileAtomic(filepath.Join(d.dir, "addresses"), []byte(addresses.String()), 0o600)
}

// launchJoining starts a node that joins through server-1, with a token of its
// own when it has not joined before.
func (d *devCluster) launchJoining(ctx context.Context, n devNode, role string) error {
	dir := filepath.Join(d.dir, n.Name)
	args := []string{"--join", d.plan.Servers[0].Peer}
	if !d.hasJoined(n) {
		var out struct{ Token string }
		in := map[string]any{"role": role, "ttl": "15m"}
		if err := whileStarting(ctx, func() error { return d.client.call(ctx, http.MethodPost, "/api/join-tokens", in, &out) }); err != nil {
			return fmt.Errorf("make a join token for %s: %w", n.Name, err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := nodekit.WriteFileAtomic(filepath.Join(dir, "join.token"), []byte(out.Token+"\n"), 0o600); err != nil {
			return err
		}
		args = append(args, "--token-file", filepath.Join(dir, "join.token"))
	}
	return d.launch(n, role, args...)
}

// whileStarting repeats a call that a starting cluster answers with 503.
func whileStarting(ctx context.Context, call func() error) error {
	for {
		err := call()
		var e *apiError
		if err == nil || !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(devPollInterval):
		}
	}
}

func (d *devCluster) launch(n devNode, role string, args ...string) error {
	dir := filepath.Join(d.dir, n.Name)
	binary := filepath.Join(dir, "moult")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(binary); err != nil {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if err := copyExecutable(self, binary); err != nil {
			return fmt.Errorf("copy this binary for %s: %w", n.Name, err)
		}
	}
	argv := []string{role, "--data", filepath.Join(dir, "data"), "--name", n.Name, "--gossip", n.Gossip, "--peer", n.Peer}
	if role == "server" {
		argv = append(argv, "--http", n.HTTP)
		argv = append(argv, d.plan.serverArgs...)
	} else {
		argv = append(argv, "--binary", binary)
		argv = append(argv, d.plan.agentArgs...)
	}
	p, err := startDevProcess(n.Name, dir, binary, append(argv, args...))
	if err != nil {
		return err
	}
	d.procs = append(d.procs, p)
	return nil
}

// await polls until ready returns nil; a process that ended meanwhile is the
// reason when it does not come to that.
func (d *devCluster) await(ctx context.Context, what string, ready func() error) error {
	for {
		err := ready()
		if err == nil {
			return nil
		}
		for _, p := range d.procs {
			if p.ended() {
				return fmt.Errorf("%s ended while waiting for %s: %s\n%s", p.name, what, p.state(), p.lastOutput())
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting for %s: %w; the logs are in %s/*/log", what, err, d.dir)
		case <-time.After(devPollInterval):
		}
	}
}

func (d *devCluster) serversHealthy(ctx context.Context) error {
	servers, err := d.client.servers(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, s := range servers {
		if s.Healthy && s.Voter {
			n++
		}
	}
	if n < len(d.plan.Servers) {
		return fmt.Errorf("%d of %d servers are healthy voters", n, len(d.plan.Servers))
	}
	for _, s := range d.plan.Servers {
		if err := httpOK(ctx, "http://"+s.HTTP+"/readyz"); err != nil {
			return err
		}
	}
	return nil
}

func (d *devCluster) agentsOnline(ctx context.Context) error {
	hosts, err := d.client.hosts(ctx, "?status=online")
	if err == nil && len(hosts) < len(d.plan.Agents) {
		err = fmt.Errorf("%d of %d agents are online", len(hosts), len(d.plan.Agents))
	}
	return err
}

func (d *devCluster) describe(w io.Writer) {
	fmt.Fprintf(w, "moult %s: %d servers, %d agents\n\n", version, len(d.plan.Servers), len(d.plan.Agents))
	for _, s := range d.plan.Servers {
		fmt.Fprintf(w, "  UI     http://%s\n", s.HTTP)
	}
	if d.password != "" {
		fmt.Fprintf(w, "  login  admin / %s\n", d.password)
	}
	fmt.Fprintf(w, `
  export MOULT_ADDR=%s
  export MOULT_TOKEN=$(cat %s)

  moult hosts
  moult release create --version 2.0.0 --key %s --out rel linux/amd64=PATH
  moult release publish rel && moult fleet update --yes --watch

Ctrl-C ends it.
`, strings.Join(d.client.addrs, ","), filepath.Join(d.dir, adminTokenFile), filepath.Join(d.dir, releaseKeyFile))
}

// description is describe for programs.
func (d *devCluster) description() map[string]any {
	return map[string]any{
		"version": version, "addresses": d.client.addrs, "servers": len(d.plan.Servers), "agents": len(d.plan.Agents),
		"user": "admin", "password": d.password, "token_file": filepath.Join(d.dir, adminTokenFile), "release_key_file": filepath.Join(d.dir, releaseKeyFile),
	}
}

// wait returns when ctx ends; a process that ends by itself is told.
func (d *devCluster) wait(ctx context.Context) {
	for _, p := range d.procs {
		go func() {
			select {
			case <-ctx.Done():
			case <-p.done:
				fmt.Fprintf(d.log, "%s ended: %s\n", p.name, p.state())
			}
		}()
	}
	<-ctx.Done()
}

// stop ends the agents, then the servers, last started first.
func (d *devCluster) stop() {
	for i := len(d.procs) - 1; i >= 0; i-- {
		d.procs[i].terminate()
	}
	for i := len(d.procs) - 1; i >= 0; i-- {
		d.procs[i].awaitEnd()
	}
}

func httpOK(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
