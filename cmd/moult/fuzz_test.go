package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
	"moult/updater"
	"moult/updater/release"
)

// What other servers send to the node port: a body that is no request is
// answered with 400 and reaches no function.
func FuzzNodeBodies(f *testing.F) {
	f.Add(uint8(0), `{"id":"s2","address":"10.0.0.2:7947"}`)
	f.Add(uint8(1), `{"manifest":"e30=","signature":"eA==","peer":"../x"}`)
	f.Add(uint8(1), `{"manifest":1}`)
	f.Add(uint8(0), `null`)
	f.Add(uint8(0), ``)
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		called := false
		endpoints := []http.HandlerFunc{
			jsonBody(func(_ context.Context, _ identity.Identity, in addServerRequest) (struct{}, error) {
				called = true
				return struct{}{}, nil
			}),
			jsonBody(func(_ context.Context, _ identity.Identity, in releaseOffer) (struct{}, error) {
				called = true
				if _, err := release.Verify(release.Pinned(), in.Manifest, in.Signature); err == nil {
					t.Fatalf("a release without a key: %q", body)
				}
				return struct{}{}, nil
			}),
		}
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		rec := httptest.NewRecorder()
		endpoints[int(which)%len(endpoints)](rec, r)
		if called != (rec.Code == http.StatusOK) || !called && rec.Code != http.StatusBadRequest {
			t.Fatalf("called: %t, answered %d: %q", called, rec.Code, body)
		}
	})
}

// What hosts tell servers through the mesh, signed by the host: a rooted one
// writes what it likes.
func FuzzHostMessages(f *testing.F) {
	f.Add([]byte(`{"job_id":"j","done":1,"total":2,"first":1,"lines":[{"at":"2026-03-01T12:00:00Z","stream":"agent","line":"x"}],"sources":[{"host_id":"a"}]}`))
	f.Add([]byte(`{"number":18446744073709551615}`))
	f.Add([]byte(`{"statements":[{"statement":"e30=","signature":""}]}`))
	f.Add([]byte(`{"first":18446744073709551615,"lines":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var report updater.Report
		if json.Unmarshal(b, &report) == nil {
			o := newObserver(mesh.NewFedRoster(mesh.Config{}).Roster)
			o.store("a", report, fleet.New().View())
			for i := range report.Lines {
				report.Lines[i].Line = fleet.ClipLine(report.Lines[i].Line)
			}
			proposed(t, fleet.JobLogAppended{JobID: report.JobID, First: report.First, Lines: report.Lines})
		}
		var keys nodekit.KeysMessage
		if json.Unmarshal(b, &keys) == nil {
			for _, s := range keys.Statements {
				if set, err := release.Pinned().Advance("c1", s); err == nil {
					t.Fatalf("followed without a key: %+v", set)
				}
			}
		}
		d := &keyDistributor{logger: slog.New(slog.DiscardHandler), follows: map[string]uint64{}}
		if list, ask := d.take(identity.Identity{HostID: "a"}, b, fleet.Cluster{KeysNumber: 3, KeyStatements: make([]fleet.KeyStatement, 3)}); len(list) > nodekit.KeysPerMessage || ask && d.followed()["a"] >= 3 {
			t.Fatalf("answered with %d statements, %t", len(list), ask)
		}
	})
}

// proposed checks that a state takes or refuses a change, and lives.
func proposed(t *testing.T, c fleet.Change) {
	t.Helper()
	e, err := fleet.NewEntry("p", "host:a", time.Unix(1_700_000_000, 0), c)
	if err != nil {
		return // a time that cannot be written
	}
	fleet.New().Apply(1, e)
}
