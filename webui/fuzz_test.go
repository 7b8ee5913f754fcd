package webui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// jsonOperations are the API's operations that read a body or a query, sorted, so
// that a corpus means the same in each run.
func jsonOperations() (ops []string) {
	for op := range roleMatrix {
		if !isPage(strings.Fields(op)[1]) && op != "GET /api/events" {
			ops = append(ops, op)
		}
	}
	slices.Sort(ops)
	return ops
}

// Whatever an admin's program sends: the answer is JSON with a code, no handler
// breaks, and what is refused changes nothing.
func FuzzAPI(f *testing.F) {
	ops := jsonOperations()
	for i, op := range ops {
		f.Add(uint8(i), "id-a", "limit=1&q=a", `{"name":"a","role":"viewer","ttl":"1h","target_version":"2.0.0"}`)
		if strings.HasPrefix(op, "POST") || strings.HasPrefix(op, "PATCH") {
			f.Add(uint8(i), "x", "", `{"name":"\u0000","role":1}`)
			f.Add(uint8(i), "..", "", `[`)
		}
	}
	f.Add(uint8(0), "%2e%2e", "since=yesterday&before=-1&limit=1e9&sort=;", `{"statement":"{}","signature":""}`)
	f.Fuzz(func(t *testing.T, which uint8, id, query, body string) {
		method, pattern, _ := strings.Cut(ops[int(which)%len(ops)], " ")
		path := pattern
		for _, name := range []string{"{id}", "{version}"} {
			path = strings.ReplaceAll(path, name, url.PathEscape(id))
		}
		u, err := url.ParseRequestURI(path)
		if err != nil {
			return
		}
		u.RawQuery = query
		w := StartWorld(t)
		w.config.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		w.MustEnrol("a", "1.0.0", true)
		w.MustRelease("2.0.0", 2)
		before := w.decided()
		r := httptest.NewRequest(method, "/", strings.NewReader(body))
		r.URL = u
		r.Header.Set("Authorization", "Bearer "+adminToken)
		got := w.Do(r)
		if got.Code >= 500 && got.Code != 503 {
			t.Fatalf("%s %s: %d %s", method, u, got.Code, got.Body)
		}
		if got.Code < 400 {
			return
		}
		var out errorJSON
		if err := json.Unmarshal(got.Body.Bytes(), &out); method != "HEAD" && (err != nil || out.Error.Code == "" || out.Error.Message == "") {
			t.Fatalf("%s %s: %d %s", method, u, got.Code, got.Body)
		}
		if w.decided() != before {
			t.Fatalf("%s %s was refused (%d %s) and changed the state", method, u, got.Code, got.Body)
		}
	})
}

// decided is the state but for how far the log is and which proposals it has
// seen: those change with an entry that the state refuses, too.
func (w *world) decided() string {
	w.tb.Helper()
	var snapshot bytes.Buffer
	if err := w.state.Snapshot(&snapshot); err != nil {
		w.tb.Fatal(err)
	}
	var kept strings.Builder
	for line := range strings.Lines(snapshot.String()) {
		var row struct {
			Table string         `json:"t"`
			Row   map[string]any `json:"r"`
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			w.tb.Fatal(err)
		}
		switch row.Table {
		case "", "proposals": // the header and the trailer, or seen
			continue
		case "meta":
			fmt.Fprintln(&kept, row.Row["cluster"])
			continue
		}
		kept.WriteString(line)
	}
	return kept.String()
}
