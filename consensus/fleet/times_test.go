package fleet

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// Times that JSON reads but cannot write again: in a zone of 24 hours, or in a
// year that leaves four digits when it is told in UTC. One of them in a row and
// no snapshot could ever be taken again.
var unwritableTimes = []string{
	"2026-01-01T00:00:00+24:00",
	"9999-12-31T23:59:59-23:00",
	"0000-01-01T00:00:00+23:00",
}

func TestNoTimeSpoilsTheSnapshot(t *testing.T) {
	job := `"body":{"job_id":"j","first":1,"lines":[{"at":%q,"stream":"agent","line":"x"}]}`
	for what, tmpl := range map[string]string{
		"an entry's":        `{"type":"user_created","version":1,"id":"x","actor":"a","at":%q,"body":{"user":{"id":"u9","name":"n9","role":"viewer","password_hash":"x"}}}`,
		"a log line's":      `{"type":"job_log_appended","version":1,"id":"x","actor":"a","at":"2026-01-01T00:00:00Z",` + job + `}`,
		"a join token's":    `{"type":"join_token_created","version":1,"id":"x","actor":"a","at":"2025-01-01T00:00:00Z","body":{"token":{"id":"k","hash":"k","role":"agent","expires_at":%q}}}`,
		"an API token's":    `{"type":"api_token_created","version":1,"id":"x","actor":"a","at":"2025-01-01T00:00:00Z","body":{"token":{"id":"k","name":"k","hash":"k","role":"viewer","expires_at":%q}}}`,
		"a session's":       `{"type":"session_created","version":1,"id":"x","actor":"a","at":"2025-01-01T00:00:00Z","body":{"session":{"hash":"k","user_id":"u1","expires_at":%q}}}`,
		"a release's":       `{"type":"release_published","version":1,"id":"x","actor":"a","at":"2025-01-01T00:00:00Z","body":{"release":{"version":"C","number":9,"artifacts":[{"os":"linux","arch":"amd64","size":1,"sha256":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}],"published_at":%q}}}`,
		"a user's making's": `{"type":"user_created","version":1,"id":"x","actor":"a","at":"2025-01-01T00:00:00Z","body":{"user":{"id":"u9","name":"n9","role":"viewer","password_hash":"x","created_at":%q}}}`,
	} {
		for _, at := range unwritableTimes {
			s := fleetOf(t, 1)
			s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
			e, err := DecodeEntry(fmt.Appendf(nil, tmpl, at))
			if err != nil {
				continue // a later Go may not read it in the first place
			}
			s.state.Apply(100, e)
			var snap bytes.Buffer
			if err := s.state.Snapshot(&snap); err != nil {
				t.Errorf("after %s time %s: %v", what, at, err)
				continue
			}
			if err := New().Restore(&snap); err != nil {
				t.Errorf("after %s time %s: %v", what, at, err)
			}
		}
	}
}

// What is stored of a time does not depend on the zone it was told in, nor on
// the zone of the server that reads it.
func TestTimesAreKeptInUTC(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	line := time.Date(2026, 7, 1, 12, 0, 0, 5, time.FixedZone("", 2*3600))
	s.must(JobLogAppended{JobID: "j", First: 1, Lines: []LogLine{{At: line, Line: "x"}}})
	token := joinToken("z")
	token.Token.ExpiresAt = line.Add(time.Hour)
	e, err := NewEntry("zoned", "user:ann", line, token)
	if err != nil {
		t.Fatal(err)
	}
	s.state.Apply(200, e)
	v := s.state.View()
	k, _ := v.JoinTokenByHash("z")
	for what, at := range map[string]time.Time{
		"a line's": v.JobLog("j", 0, 1)[0].At, "an audit entry's": v.Audit(0, 1)[0].At, "a token's": k.CreatedAt, "its end's": k.ExpiresAt.Add(-time.Hour),
	} {
		if at.Location() != time.UTC || !at.Equal(line) {
			t.Errorf("%s time is %s; want %s in UTC", what, at, line)
		}
	}
}
