package webui

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/updater/release"
	"moult/webui/browsertest"
)

func TestReleasesPageTellsWhoRunsWhat(t *testing.T) {
	w := StartWorld(t)
	w.Admin("GET", "/releases", "").Shows("Nothing is published yet", "moult release create")
	w.MustEnrol("a", "2.0.0", true)
	w.MustEnrol("b", "2.0.0", false)
	w.MustEnrol("c", "dev", true)
	w.MustRelease("2.0.0", 2)
	w.MustRelease("2.1.0", 3)
	w.Admin("GET", "/releases", "").Shows("2.1.0 number 3 available target none linux/amd64 3 B", "2.0.0 number 2 available 2 hosts", "dev : 1 host", "Withdraw")
	w.Admin("DELETE", "/api/releases/2.1.0", "").OK()
	w.Admin("GET", "/releases", "").Shows("2.1.0 number 3 withdrawn none", "2.0.0 number 2 available target 2 hosts")
	for _, token := range []string{viewerToken, operatorToken} {
		if body := w.Call(token, "GET", "/releases", "").Body.String(); strings.Contains(body, "data-call") || strings.Contains(body, "data-upload") {
			t.Errorf("offered: %s", body)
		}
	}
}

func TestWithdrawTellsWhatThenIsTheTarget(t *testing.T) {
	w := StartWorld(t)
	w.MustEnrol("a", "2.1.0", true)
	w.MustRelease("2.0.0", 2)
	w.MustRelease("2.1.0", 3)
	question := func(version, want string) {
		t.Helper()
		page := w.Admin("GET", "/releases", "").Body.String()
		_, row, _ := strings.Cut(page, `id="release-`+version+`"`)
		row, _, _ = strings.Cut(row, "</tr>")
		if !strings.Contains(row, "Withdraw "+version+"? ") || !strings.Contains(row, want) {
			t.Errorf("%s: no %q in %s", version, want, row)
		}
	}
	question("2.1.0", "The target becomes 2.0.0. Its number is lower: what runs 2.1.0 now (1 host) is then shown as behind")
	question("2.0.0", "The target stays 2.1.0.")
	w.Admin("DELETE", "/api/releases/2.0.0", "").OK()
	question("2.1.0", "No other release is available: the target becomes "+ownVersion+", which this server runs, and no update can be started")
	if body := w.Admin("GET", "/releases", "").Body.String(); strings.Contains(body, "Withdraw 2.0.0?") {
		t.Error("what is withdrawn can be withdrawn again")
	}
	w.Admin("DELETE", "/api/releases/2.1.0", "").OK()
	if target := w.Admin("GET", "/api/hosts", "").OK()["hosts"].([]any)[0].(map[string]any)["target_version"]; target != ownVersion {
		t.Errorf("it said otherwise: %v", target)
	}
}

func TestReleasesPageTellsWhetherTheKeyIsPinned(t *testing.T) {
	public, secret, err := release.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	w := StartWorldWith(t, public)
	binary := filepath.Join(t.TempDir(), "moult")
	if err := os.WriteFile(binary, []byte("binary"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "rel")
	if _, err := release.Build(release.BuildOptions{
		Version: "3.0.0", Number: 3, Dir: dir, SecretKey: secret, Created: w.clock.Now(),
		Files: map[release.Platform]string{{OS: "linux", Arch: "amd64"}: binary},
	}); err != nil {
		t.Fatal(err)
	}
	r := fleet.Release{Version: "3.0.0", Number: 3, Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 6, SHA256: strings.Repeat("ab", 32)}}}
	for name, field := range map[string]*[]byte{release.ManifestFile: &r.Manifest, release.SignatureFile: &r.Signature} {
		if *field, err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	w.MustPropose("user:admin", fleet.ReleasePublished{Release: r})
	w.MustRelease("2.0.0", 2) // signed by nobody
	w.Admin("GET", "/releases", "").Shows("by a pinned key", "by a key that is not pinned now")
}

func TestAlertsPage(t *testing.T) {
	f := StartFurnished(t)
	f.Admin("GET", "/alerts", "").Shows("Open 2", "update of web-1 to 2.0.0 failed", "Acknowledge", "fleet update to 2.0.0 halted",
		"when an update of the host succeeds, or when the host is back at the version", "or when a later fleet update with that host completes")
	if body := f.Call(viewerToken, "GET", "/alerts", "").Body.String(); strings.Contains(body, "data-call") {
		t.Error("a viewer may acknowledge")
	}
	open := f.state.View().OpenAlerts()
	f.Call(operatorToken, "POST", "/api/alerts/"+open[0].ID+"/acknowledge", "").OK()
	f.Call(operatorToken, "POST", "/api/alerts/"+open[0].ID+"/acknowledge", "").Refused(409, "conflict")
	f.Call(operatorToken, "POST", "/api/alerts/nobody/acknowledge", "").Refused(404, "alert_not_found")
	f.MustPropose("coordinator", fleet.AlertResolved{AlertID: open[1].ID})
	f.Admin("GET", "/alerts", "").Shows("Nothing asks for you", "Resolved 2", "API token op", "itself")
	if a := f.Admin("GET", "/alerts?page=0", ""); a.Code != 400 {
		t.Errorf("%d", a.Code)
	}
}

func TestAuditFiltersAndPages(t *testing.T) {
	w := StartWorld(t)
	start := w.clock.Now()
	for i := range 2*auditRows + 10 {
		w.clock.Advance(time.Hour)
		w.MustPropose("user:ann", fleet.UserChanged{UserID: "u1", PasswordHash: fmt.Sprint(i)})
	}
	w.MustPropose("user:bob", fleet.UserCreated{User: fleet.User{ID: "u9", Name: "carl", Role: fleet.Viewer, PasswordHash: "x"}})
	count := func(query string, want int) {
		t.Helper()
		entries := w.Admin("GET", "/api/audit?limit=1000&"+query, "").OK()["entries"].([]any)
		if len(entries) != want {
			t.Errorf("%s: %d entries, want %d", query, len(entries), want)
		}
	}
	count("actor=BOB", 1)
	count("q=CARL", 1)
	count("action=user_changed", 2*auditRows+10)
	count("action=user_changed&since="+start.Add(105*time.Hour).Format(time.RFC3339), 6)
	count("action=user_changed&until=2026-03-01", 11) // the day is included
	count("action=user_changed&since=2026-03-02&until=2026-03-02", 24)
	count("action=nothing", 0)
	w.Admin("GET", "/api/audit?since=yesterday", "").Refused(400, "bad_request")
	w.Admin("GET", "/api/audit/export?format=xml", "").Refused(400, "bad_request")

	first := w.Admin("GET", "/audit?actor=ann", "")
	first.Shows("Newest entries", "user changed", "Older →")
	_, older, _ := strings.Cut(first.Body.String(), `<a href="/audit?actor=ann&amp;before=`)
	older, _, _ = strings.Cut(older, `"`)
	second := w.Admin("GET", "/audit?actor=ann&before="+older, "")
	second.Shows("Older entries", "← Newest", "Older →")
	if n := strings.Count(second.Body.String(), `<tr id="entry-`); n != auditRows {
		t.Errorf("%d rows", n)
	}
	w.Admin("GET", "/audit?q=nothing", "").Shows("No entry matches")
	if a := w.Admin("GET", "/audit?before=x", ""); a.Code != 400 {
		t.Errorf("%d", a.Code)
	}
}

func TestAuditExports(t *testing.T) {
	w := StartWorld(t)
	for range maxAuditEntries + 5 { // more than one read
		w.MustPropose("user:ann", fleet.UserChanged{UserID: "u1", PasswordHash: "x"})
	}
	w.MustPropose(`=HYPERLINK("http://evil")`, fleet.UserChanged{UserID: "u1", PasswordHash: "x"})
	all := len(w.state.View().Audit(0, 1<<20))

	a := w.Call(viewerToken, "GET", "/api/audit/export?format=csv", "")
	rows, err := csv.NewReader(a.Body).ReadAll()
	if err != nil || len(rows) != all+1 || a.Header().Get("Content-Type") != "text/csv; charset=utf-8" || !strings.Contains(a.Header().Get("Content-Disposition"), ".csv") {
		t.Errorf("%v, %d rows of %d, %v", err, len(rows), all, a.Header())
	}
	if rows[1][2] != `'=HYPERLINK("http://evil")` {
		t.Errorf("a spreadsheet would run %s", rows[1][2])
	}
	for query, want := range map[string]int{"": all, "?format=json&actor=ann": maxAuditEntries + 5, "?actor=nobody": 0} {
		var out struct{ Entries []fleet.AuditEntry }
		a := w.Call(viewerToken, "GET", "/api/audit/export"+query, "")
		if err := json.Unmarshal(a.Body.Bytes(), &out); err != nil || len(out.Entries) != want || out.Entries == nil {
			t.Errorf("%q: %v, %d entries, want %d", query, err, len(out.Entries), want)
		}
	}
}

// TestAdminPublishesInABrowser uploads through the form: first without the
// signature, then a release that is not signed right, then a good one.
func TestAdminPublishesInABrowser(t *testing.T) {
	w := StartWorld(t)
	srv := w.MustServe("server-2")
	manifest, signature, artifact := w.store.makeRelease(t, "3.0.0", 3)
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	files := []string{write("moult-linux-amd64", artifact), write(release.ManifestFile, manifest), write(release.SignatureFile, []byte("wrong"))}
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/releases")
	publish := func(files ...string) {
		b.Do(chromedp.SetUploadFiles(chromedp.ID("files"), files), browsertest.Click(chromedp.CSS("#publish button")))
	}
	publish(files[:2]...)
	b.AwaitText("choose manifest.json, manifest.json.minisig and the binaries")
	publish(files...)
	b.AwaitText("the manifest's signature is wrong")
	write(release.SignatureFile, signature)
	publish(files...)
	b.AwaitText("3.0.0 number 3")
	b.AwaitNoText("signature is wrong")
	b.Do(browsertest.Click(chromedp.CSS("#live .danger")), confirm())
	b.AwaitText("withdrawn")
}
