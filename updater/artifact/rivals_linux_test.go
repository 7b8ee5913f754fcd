package artifact

import (
	"bytes"
	"crypto/sha1"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// nginx has the seed serve the artifact to curl on all hosts at once, over plain
// HTTP and without a check of what came. For nginx an answer is over when the kernel
// has the last of it, up to 4 MiB before the client: with its own keep-alive of 75 s it
// would close connections whose bytes are still to be sent, and the kernel resets some
// of so many.
func (d *distribution) nginx(hosts int) float64 {
	t := d.t
	t.Helper()
	d.stopNodes() // the seed's has the port
	dir := d.hostDir(0)
	must(t, os.WriteFile(filepath.Join(dir, "nginx.conf"), fmt.Appendf(nil, `daemon off; master_process off; pid nginx.pid; error_log stderr;
events { worker_connections 4096; }
http {
	access_log off; sendfile on; send_timeout 20m; keepalive_timeout 20m; lingering_timeout 20m;
	client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
	server { listen %s; root %s; }
}
`, d.addr(0), filepath.Dir(d.file)), 0o600))
	server := d.in(0, "nginx", "-e", "stderr", "-p", dir, "-c", "nginx.conf")
	must(t, server.Start())
	defer stopProcess(server)
	time.Sleep(time.Second)
	begun := time.Now()
	var all sync.WaitGroup
	for i := 1; i <= hosts; i++ {
		to := filepath.Join(d.hostDir(i), "artifact")
		curl := d.in(i, "curl", "-sS", "-f", "--retry", "5", "--retry-all-errors", "-o", to, "http://"+d.addr(0)+"/artifact")
		all.Go(func() {
			if out, err := curl.CombinedOutput(); err != nil {
				t.Errorf("curl: %v: %s", err, out)
			}
		})
	}
	all.Wait()
	seconds := time.Since(begun).Seconds()
	d.mustHaveArrived(hosts)
	return seconds
}

func stopProcess(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func (d *distribution) mustHaveArrived(hosts int) {
	d.t.Helper()
	for i := 1; i <= hosts; i++ {
		content, err := os.ReadFile(filepath.Join(d.dir, fmt.Sprintf("h%d", i), "artifact"))
		if err != nil || digestOf(content) != d.digest {
			d.t.Errorf("host %d has %d other bytes, %v", i, len(content), err)
		}
	}
}

// bittorrentPatience is when the row tells that it takes at least as long.
const bittorrentPatience = 3 * time.Minute

// bittorrent has aria2 on all hosts get the artifact from each other and from the
// seed, with a tracker on the switch, and no DHT or local discovery, which would
// find the same hosts later.
func (d *distribution) bittorrent(hosts int) float64 {
	t := d.t
	t.Helper()
	const piece = 64 << 10
	content, err := os.ReadFile(d.file)
	must(t, err)
	var pieces bytes.Buffer
	for at := 0; at < len(content); at += piece {
		sum := sha1.Sum(content[at:min(at+piece, len(content))])
		pieces.Write(sum[:])
	}
	listens := d.ip(-1) + ":6969"
	announce := "http://" + listens + "/announce"
	torrent := filepath.Join(d.dir, "artifact.torrent")
	must(t, os.WriteFile(torrent, fmt.Appendf(nil, "d8:announce%d:%s4:infod6:lengthi%de4:name8:artifact12:piece lengthi%de6:pieces%d:%see",
		len(announce), announce, len(content), piece, pieces.Len(), pieces.Bytes()), 0o644))
	self, err := os.Executable()
	must(t, err)
	tracker := d.in(-1, self, "-test.run=^TestDistributionTracker$")
	tracker.Env = append(os.Environ(), trackerVar+"="+listens)
	must(t, tracker.Start())
	defer stopProcess(tracker)
	time.Sleep(time.Second)
	clients := make([]*exec.Cmd, hosts+1)
	defer func() {
		for _, c := range clients {
			if c != nil && c.Process != nil {
				stopProcess(c)
			}
		}
	}()
	start := func(i int, dir string, options ...string) {
		clients[i] = d.in(i, "aria2c", append([]string{
			"--no-conf", "-d", dir, "--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--bt-tracker-interval=1",
			"--seed-ratio=0", "--listen-port=6881", "--file-allocation=none", "--quiet", "--bt-max-peers=0", "--disable-ipv6=true",
		}, append(options, torrent)...)...)
		must(t, clients[i].Start())
	}
	start(0, filepath.Dir(d.file), "--check-integrity=true")
	time.Sleep(3 * time.Second)
	begun := time.Now()
	var last time.Time
	for i := 1; i <= hosts; i++ {
		dir := d.hostDir(i)
		script := filepath.Join(dir, "done.sh")
		must(t, os.WriteFile(script, []byte("#!/bin/sh\ndate +%s%N > "+filepath.Join(dir, "at.new")+" && mv "+filepath.Join(dir, "at.new")+" "+filepath.Join(dir, "at")+"\n"), 0o700))
		start(i, dir, "--on-bt-download-complete="+script)
	}
	deadline := begun.Add(bittorrentPatience)
	for i := 1; i <= hosts; i++ {
		for {
			text, err := os.ReadFile(filepath.Join(d.dir, fmt.Sprintf("h%d", i), "at"))
			if err == nil {
				ns, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
				must(t, err)
				if at := time.Unix(0, ns); at.After(last) {
					last = at
				}
				break
			}
			if time.Now().After(deadline) {
				t.Logf("BitTorrent is given up after %s: host %d does not have it", bittorrentPatience, i)
				return bittorrentPatience.Seconds()
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	d.mustHaveArrived(hosts)
	return last.Sub(begun).Seconds()
}

const trackerVar = "MOULT_DISTRIBUTION_TRACKER"

// TestDistributionTracker is a BitTorrent tracker (BEP 3, BEP 23) for one torrent,
// in a process of its own: it names everybody to everybody.
func TestDistributionTracker(t *testing.T) {
	addr := os.Getenv(trackerVar)
	if addr == "" {
		t.Skip("only as a process of TestDistribution")
	}
	var mu sync.Mutex
	var peers []byte
	known := map[string]bool{}
	srv := &http.Server{Addr: addr, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		port, _ := strconv.Atoi(r.URL.Query().Get("port"))
		mu.Lock()
		defer mu.Unlock()
		if ip := net.ParseIP(host).To4(); ip != nil && !known[host] {
			known[host] = true
			peers = append(append(peers, ip...), byte(port>>8), byte(port))
		}
		fmt.Fprintf(w, "d8:intervali1e12:min intervali1e5:peers%d:%se", len(peers), peers)
	})}
	t.Fatal(srv.ListenAndServe())
}
