//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// monitoring is where the examples for Prometheus and Grafana are.
var monitoring = filepath.FromSlash("../../docs/monitoring")

// TestMetricsOfARealServer scrapes the servers of a cluster that has updated its
// fleet, and holds the scrape to promtool, and the example rules and dashboard to
// the scrape.
func TestMetricsOfARealServer(t *testing.T) {
	t.Parallel()
	promtool := findPromtool(t)
	c := startCluster(t, 3, 2)
	c.publish(versionB, binary(t, versionB))
	c.awaitFleetUpdate(c.startFleetUpdate(nil), "completed", 2*time.Minute)

	var scrapes []string
	// All at once, and not amid an election: the leader may change, and one that was just
	// elected has done nothing yet.
	c.await(time.Minute, "all in the metrics as it is", func() error {
		scrapes = nil
		leaders := 0
		for _, addr := range c.client.addrs {
			text, err := scrape(addr, c.client.token)
			if err != nil {
				return err
			}
			for name, want := range map[string]string{
				`moult_job_seconds_count{status="succeeded"}`:            "2",
				`moult_hosts_by_version{state="online",version="2.0.0"}`: "2", `moult_fleet_update_status{status="completed"}`: "1",
				`moult_ready`: "1", `moult_raft_has_leader`: "1", `moult_raft_voters`: "3",
			} {
				if got := sample(text, name); got != want {
					return fmt.Errorf("%s is %q, not %s", name, got, want)
				}
			}
			feeds := []string{`moult_raft_log_write_seconds_count{as="follower"}`}
			if sample(text, "moult_raft_leader") == "1" {
				leaders++
				feeds = []string{`moult_raft_commit_seconds_count`, `moult_raft_log_write_seconds_count{as="leader"}`, `moult_raft_append_rpc_seconds_count`, "moult_raft_heartbeat_seconds_count"}
			}
			for _, name := range feeds {
				if got := sample(text, name); got == "" || got == "0" {
					return fmt.Errorf("%s is %q: nothing feeds it", name, got)
				}
			}
			scrapes = append(scrapes, text)
		}
		if leaders != 1 {
			return fmt.Errorf("%d servers say that they lead", leaders)
		}
		return nil
	})
	for _, text := range scrapes {
		check := exec.Command(promtool, "check", "metrics")
		check.Stdin = strings.NewReader(text)
		if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool complains (%v): %s", err, out)
		}
		for _, name := range []string{
			"moult_data_free_bytes", "moult_raft_log_bytes", "moult_raft_term", "moult_memberlist_gossip_seconds_count",
			"moult_raft_apply_seconds_count", `moult_memberlist_sent_bytes_total{transport="udp"}`, `moult_memberlist_messages_total{kind="alive"}`,
		} {
			if got := sample(text, name); got == "" || got == "0" {
				t.Errorf("%s is %q: nothing feeds it", name, got)
			}
		}
		// Peers come and go: no series is named after one.
		if strings.Contains(text, "peer_id") || strings.Contains(text, "agent-1") {
			t.Error("series are named after hosts")
		}
	}
	var fetched, served bool
	for _, text := range scrapes {
		fetched = fetched || sample(text, "moult_artifact_fetched_bytes_total") != "0"
		served = served || sample(text, "moult_artifact_served_bytes_total") != "0"
		if sample(text, `moult_job_fetched_bytes_total{source="server"}`) == "0" {
			t.Error("no agent is known to have fetched from a server")
		}
	}
	if !fetched || !served {
		t.Errorf("the release went to all servers: fetched %v, served %v", fetched, served)
	}
	documented(t, scrapes[0])
	for _, file := range []string{"moult.rules.yml", "moult-dashboard.json"} {
		for _, name := range metricNames(t, file) {
			if name != "up" && !strings.Contains(scrapes[0], "\n"+name+"{") && !strings.Contains(scrapes[0], "\n"+name+" ") {
				t.Errorf("%s names %s, which no server has", file, name)
			}
		}
	}
}

// documented holds the page of metrics to a scrape.
func documented(t *testing.T, text string) {
	t.Helper()
	page, err := os.ReadFile(monitoring + ".md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, m := range regexp.MustCompile("`(moult_[a-z_]+)[`{]").FindAllStringSubmatch(string(page), -1) {
		told[m[1]] = true
		if !strings.Contains(text, "# TYPE "+m[1]+" ") {
			t.Errorf("the page tells of %s, which no server has", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (moult_\w+) `).FindAllStringSubmatch(text, -1) {
		if !told[m[1]] {
			t.Errorf("the page does not tell of %s", m[1])
		}
	}
}

// TestRulesAreGood has promtool read the example rules, and run them on made-up
// series: what is healthy is silent, what is wrong is told.
func TestRulesAreGood(t *testing.T) {
	promtool := findPromtool(t)
	for _, args := range [][]string{{"check", "rules", "moult.rules.yml"}, {"test", "rules", "moult.rules.test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = monitoring
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

func findPromtool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		const missing = "promtool is not installed; Debian's package prometheus has it: apt-get install prometheus"
		if os.Getenv("CI") != "" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	return path
}

func scrape(addr, token string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/metrics", nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// sample returns the value of a series in a scrape; "" when there is none.
func sample(text, series string) string {
	for line := range strings.Lines(text) {
		if value, found := strings.CutPrefix(line, series+" "); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// metricNames returns the metrics that an example's expressions name.
func metricNames(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(monitoring, file))
	if err != nil {
		t.Fatal(err)
	}
	var expressions []string
	if strings.HasSuffix(file, ".json") {
		var dashboard struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(text, &dashboard); err != nil {
			t.Fatal(err)
		}
		for _, p := range dashboard.Panels {
			for _, target := range p.Targets {
				expressions = append(expressions, target.Expr)
			}
		}
	} else {
		for _, m := range regexp.MustCompile(`(?m)^\s*expr: (.*)$`).FindAllStringSubmatch(string(text), -1) {
			expressions = append(expressions, m[1])
		}
	}
	var names []string
	for _, e := range expressions {
		e = regexp.MustCompile(`\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)`).ReplaceAllString(e, "")
		for _, name := range regexp.MustCompile(`[a-z][a-z0-9]*(_[a-z0-9]+)+|\bup\b`).FindAllString(e, -1) {
			if name != "histogram_quantile" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) < 12 {
		t.Fatalf("only %d metrics are named in %s: %v", len(names), file, names)
	}
	return names
}
