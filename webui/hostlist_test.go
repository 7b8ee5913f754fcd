package webui

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

func TestHostListSortsFiltersAndPages(t *testing.T) {
	w := StartWorld(t)
	for i, version := range []string{"1.10.0", "1.9.0", "2.0.0", ""} {
		id := w.MustEnrol(fmt.Sprintf("h%d", i), version, i != 1)
		if version != "" {
			w.roster.set(id, Observation{Online: i != 1, Version: version, LastSeen: w.clock.Now().Add(-time.Duration(i) * time.Minute)})
		}
	}
	w.MustRelease("2.0.0", 2)
	for query, want := range map[string]string{
		"":                      "h0 h1 h2 h3",
		"?sort=-name":           "h3 h2 h1 h0",
		"?sort=version":         "h3 h1 h0 h2",
		"?sort=-version":        "h2 h0 h1 h3",
		"?sort=seen":            "h3 h2 h1 h0",
		"?sort=status":          "h1 h3 h0 h2",
		"?version=2.0.0":        "h2",
		"?limit=2":              "h0 h1",
		"?limit=2&offset=3":     "h3",
		"?offset=999999999999":  "",
		"?status=online&q=H":    "h0 h2",
		"?sort=segment&limit=1": "h0",
	} {
		got := w.Admin("GET", "/api/hosts"+query, "").OK()
		if names := strings.Join(column(got["hosts"], "name"), " "); names != want {
			t.Errorf("%q: %s, want %s", query, names, want)
		}
	}
	if got := w.Admin("GET", "/api/hosts?limit=1&updates=behind", "").OK(); got["total"] != 2.0 {
		t.Errorf("total %v", got["total"])
	}
	for query, names := range map[string]string{"?sort=age": "sort", "?limit=0": "limit", "?limit=x": "limit", "?limit=100001": "limit", "?offset=-1": "offset"} {
		if msg := w.Admin("GET", "/api/hosts"+query, "").Refused(400, "bad_request"); !strings.HasPrefix(msg, names+":") {
			t.Errorf("%s: %s", query, msg)
		}
	}
}

func TestDashboardPagesItsHosts(t *testing.T) {
	w := StartWorld(t)
	w.MustCrowd(2*hostsPerPage + 1)
	first := w.Admin("GET", "/?status=online", "").Body.String()
	for _, want := range []string{`rel="next"`, "status=online", "Page 1 of 3", `id="host-c0"`} {
		if !strings.Contains(first, want) {
			t.Errorf("no %s in %s", want, first)
		}
	}
	if strings.Contains(first, `rel="prev"`) || strings.Count(first, `<tr id="host-`) != hostsPerPage {
		t.Error("the first page has a previous one, or not its rows")
	}
	// A page behind the end is the last one: hosts may have gone since.
	last := w.Admin("GET", "/?page=900", "").Body.String()
	if strings.Count(last, `<tr id="host-`) != 1 || !strings.Contains(last, "Page 3 of 3") || strings.Contains(last, `rel="next"`) {
		t.Errorf("last: %s", last)
	}
	for _, page := range []string{"0", "-1", "x", "1000001", "99999999999999999999"} {
		if a := w.Admin("GET", "/?page="+page, ""); a.Code != http.StatusBadRequest || !strings.Contains(a.Body.String(), "page: ") {
			t.Errorf("page %s: %d", page, a.Code)
		}
	}
}

func TestVersionsCompareByTheirNumbers(t *testing.T) {
	versions := []string{"2.0.0", "1.10.0", "1.9.0-rc1", "", "1.9.0", "01.9.1", "dev", "1.9.0-rc10", "1.9.0-rc9"}
	slices.SortFunc(versions, compareVersions)
	if got := strings.Join(versions, " "); got != " 1.9.0 1.9.0-rc1 1.9.0-rc9 1.9.0-rc10 01.9.1 1.10.0 2.0.0 dev" {
		t.Error(got)
	}
}

// MustCrowd lets n agents in, c0 to c(n-1), half of them behind once there is a
// release 2.0.0.
func (w *world) MustCrowd(n int) {
	w.tb.Helper()
	for i := range n {
		if i%100 == 99 {
			w.clock.Advance(60 * 24 * time.Hour) // used tokens are dropped long after they expired: each new one walks over the rest
		}
		name, version := fmt.Sprint("c", i), "1.0.0"
		if i%2 == 0 {
			version = "2.0.0"
		}
		hash := hashSecret("join " + name)
		w.MustPropose("system", fleet.JoinTokenCreated{Token: fleet.JoinToken{ID: "j-" + name, Hash: hash, Role: fleet.RoleAgent, Segment: fmt.Sprint("s", i%7), ExpiresAt: w.clock.Now().Add(time.Hour)}})
		w.MustPropose("host:"+name, fleet.HostEnrolled{TokenHash: hash, Host: fleet.Host{
			ID: name, Name: name, OS: "linux", Arch: "amd64", PublicKey: make([]byte, 32), PeerAddr: "10.0.0.9:7947",
		}})
		w.roster.mu.Lock()
		w.roster.seen[name] = Observation{Online: true, Version: version, Phase: "idle", LastSeen: w.clock.Now()}
		w.roster.mu.Unlock()
	}
}

// BenchmarkTenThousandHosts measures what people and programs ask for most.
func BenchmarkTenThousandHosts(b *testing.B) {
	w := StartWorld(b)
	w.MustCrowd(10_000)
	w.MustRelease("2.0.0", 2)
	for name, path := range map[string]string{
		"page": "/", "page-while-the-state-changes": "/", "page-sorted": "/?sort=-version&page=7", "page-search": "/?q=c99", "list-all": "/api/hosts", "list-100": "/api/hosts?limit=100&sort=version",
		"fleet-update": "/settings/fleet-update", "releases": "/releases", "host": "/hosts/c77",
	} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				if strings.HasSuffix(name, "changes") {
					w.MustPropose("system", fleet.SessionEnded{Hash: "nobody"})
				}
				r := httptest.NewRequest("GET", path, nil)
				r.Header.Set("Authorization", "Bearer "+viewerToken)
				start := time.Now()
				a := w.Do(r)
				took = append(took, time.Since(start))
				if a.Code != http.StatusOK {
					b.Fatal(a.Code)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "ms-p95")
		})
	}
}
