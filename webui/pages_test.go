package webui

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

func TestBinaryCarriesItsDigest(t *testing.T) {
	w := StartWorld(t)
	sum := sha256.Sum256(ownBinary)
	want := "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
	a := w.Call("", "GET", "/agent/binary?os=linux&arch=amd64", "")
	if a.Code != 200 || a.Body.String() != string(ownBinary) || a.Header().Get("Repr-Digest") != want {
		t.Errorf("%d %v", a.Code, a.Header())
	}
	r := httptest.NewRequest("GET", "/agent/binary?os=linux&arch=amd64", nil)
	r.Header.Set("Range", "bytes=1-3")
	if a := w.Do(r); a.Code != 206 || a.Body.String() != "ELF" || a.Header().Get("Repr-Digest") != want {
		t.Errorf("range: %d %q", a.Code, a.Body)
	}
	w.Call("", "GET", "/agent/binary?os=plan9&arch=mips", "").Refused(404, "no_such_build")
	w.Call("", "GET", "/agent/binary?arch=amd64", "").Refused(400, "bad_request")
	w.Call("", "GET", "/agent/binary?os=linux", "").Refused(400, "bad_request")
	if msg := w.Call("", "GET", "/agent/binary?os=linux&arch=broken", "").Refused(500, "internal"); strings.Contains(msg, "fire") {
		t.Errorf("tells strangers: %s", msg)
	}
}

// textOf leaves out tags, so that tests read what people read.
func textOf(html string) string {
	return strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(html, " ")), " ")
}

func TestDashboardShowsTheFleet(t *testing.T) {
	w := StartWorld(t)
	if page := textOf(w.Admin("GET", "/", "").Body.String()); !strings.Contains(page, "No host has joined yet") {
		t.Errorf("empty: %s", page)
	}
	w.MustEnrol("a", "1.0.0", true)
	w.MustEnrol("b", "1.0.0", true)
	if page := w.Admin("GET", "/", "").Body.String(); strings.Contains(page, "updates=behind") {
		t.Error("there is a tile of hosts behind, and none is")
	}
	w.MustEnrol("gone", "1.0.0", false)
	w.MustEnrol("new", "2.0.0", true)
	w.MustRelease("2.0.0", 2)
	page := w.Admin("GET", "/", "").Body.String()
	for _, want := range []string{"3 online", "1 offline", "3 hosts behind", "out of date · 1.0.0 → 2.0.0", "2 online hosts are behind 2.0.0", "Start rolling update"} {
		if !strings.Contains(textOf(page), want) {
			t.Errorf("no %q in %s", want, textOf(page))
		}
	}
	if !strings.Contains(page, `href="/?updates=behind"`) {
		t.Error("the tile does not link to the hosts behind")
	}
	viewer := w.Call(viewerToken, "GET", "/", "").Body.String()
	if strings.Contains(viewer, "data-call") {
		t.Error("a viewer is offered buttons")
	}
	filtered := textOf(w.Admin("GET", "/?updates=behind&status=offline", "").Body.String())
	if !strings.Contains(filtered, "Hosts 1 of 4") || !strings.Contains(filtered, "gone") {
		t.Errorf("filtered: %s", filtered)
	}
	if bad := w.Admin("GET", "/?status=x", ""); bad.Code != 400 || !strings.Contains(bad.Body.String(), "status") {
		t.Errorf("%d %s", bad.Code, bad.Body)
	}
}

func TestDashboardFollowsAFleetUpdate(t *testing.T) {
	w := StartWorld(t)
	a := w.MustEnrol("a", "1.0.0", true)
	w.MustEnrol("b", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	id := w.Admin("POST", "/api/fleet/update", "").OK()["fleet_update_id"].(string)
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: "j1", HostID: a, FleetUpdateID: id, FromVersion: "1.0.0", Boot: 1})
	w.roster.set(a, Observation{Online: true, Version: "1.0.0", Phase: "fetching", Done: 30, Total: 120, LastSeen: w.clock.Now()})
	w.Fragment(adminToken, "/").Shows("0/2 update running", "Fleet update to 2.0.0 running", "0 of 2 hosts done now a fetching 25 % 25 %")
	const page = "/settings/fleet-update"
	live := w.Fragment(adminToken, page).Body.String()
	for _, want := range []string{"Fleet update to 2.0.0 running", "1 a running fetching 25 % 25 %", "2 b pending", "Pause", "Cancel"} {
		if !strings.Contains(textOf(live), want) {
			t.Errorf("no %q in %s", want, textOf(live))
		}
	}
	if strings.Contains(live, "<html") || strings.Contains(live, "Start rolling update") {
		t.Errorf("fragment: %s", live)
	}
	operator := w.Fragment(operatorToken, page).Body.String()
	if !strings.Contains(operator, "/pause") || strings.Contains(operator, "/cancel") {
		t.Error("an operator may pause and not cancel")
	}
	w.MustPropose("coordinator", fleet.JobFinished{JobID: "j1", Status: fleet.JobFailed, Error: "the disk is full"})
	w.Fragment(adminToken, "/").Shows("Last fleet update to 2.0.0 halted", "Halted: a: the disk is full", "open alerts", "Start rolling update")
	halted := textOf(w.Fragment(adminToken, page).Body.String())
	for _, want := range []string{"Last fleet update to 2.0.0 halted", "Halted: a: the disk is full", "failed the disk is full", "Start rolling update"} {
		if !strings.Contains(halted, want) {
			t.Errorf("no %q in %s", want, halted)
		}
	}
}

func TestPagesKeepToTheirPolicy(t *testing.T) {
	w := StartFurnished(t)
	for _, path := range append(w.pages(), "/login", "/nothing", "/api/hosts", "/static/live.js") {
		token := adminToken
		if path == "/login" {
			token = ""
		}
		a := w.Call(token, "GET", path, "")
		csp := a.Header().Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if a.Header().Get("X-Frame-Options") != "DENY" || a.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %v", path, a.Header())
		}
		wantCache := "no-store"
		if strings.HasPrefix(path, "/static/") {
			wantCache = "no-cache"
		}
		if cache := a.Header().Get("Cache-Control"); cache != wantCache {
			t.Errorf("%s: Cache-Control %s", path, cache)
		}
		// What the policy would block must not be there.
		if inline := regexp.MustCompile(`<script>|<style|style="|\son[a-z]+="|javascript:|https?://`).FindString(a.Body.String()); inline != "" && path != "/static/live.js" {
			t.Errorf("%s has inline %s", path, inline)
		}
	}
}

func TestStaticFiles(t *testing.T) {
	w := StartWorld(t)
	for name, kind := range map[string]string{"app.css": "text/css", "live.js": "text/javascript", "vendor/htmx.min.js": "text/javascript", "icon.svg": "image/svg+xml"} {
		a := w.Call("", "GET", "/static/"+name, "")
		if a.Code != 200 || !strings.HasPrefix(a.Header().Get("Content-Type"), kind) {
			t.Errorf("%s: %d %v", name, a.Code, a.Header())
		}
		r := httptest.NewRequest("GET", "/static/"+name, nil)
		r.Header.Set("If-None-Match", a.Header().Get("ETag"))
		if again := w.Do(r); again.Code != 304 {
			t.Errorf("%s again: %d", name, again.Code)
		}
	}
	for _, path := range []string{"/static/..%2fwebui.go", "/static/vendor/README.md", "/static/vendor/..%2fapp.css", "/static/vendor/", "/static/"} {
		if a := w.Call("", "GET", path, ""); a.Code != 404 {
			t.Errorf("%s: %d", path, a.Code)
		}
	}
}

// TestVendoredFilesAreWhatTheirReadmeSays keeps others' files unchanged.
func TestVendoredFilesAreWhatTheirReadmeSays(t *testing.T) {
	readme, err := os.ReadFile("static/vendor/README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("static/vendor/*.js")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		row := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(filepath.Base(f)) + ` \|.*$`).FindString(string(readme))
		if sum := sha256.Sum256(content); !strings.Contains(row, hex.EncodeToString(sum[:])) {
			t.Errorf("%s is not what its row says: %q", f, row)
		}
	}
}

func TestAgoReadsLikeASentence(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for d, want := range map[time.Duration]string{0: "now", 30 * time.Second: "30 s ago", 5 * time.Minute: "5 min ago", 3 * time.Hour: "3 h ago", 72 * time.Hour: "3 days ago"} {
		then := now.Add(-d)
		if got := ago(now, &then); got != want {
			t.Errorf("%s: %s", d, got)
		}
	}
	if got := ago(now, nil); got != "never" {
		t.Error(got)
	}
}
