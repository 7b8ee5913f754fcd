package fleet

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

func TestProposalsAreForgottenOldestFirst(t *testing.T) {
	s := newScript(t)
	s.state.bounds.proposals = 3
	s.must(cluster(), joinToken("a"), joinToken("b"), joinToken("c")) // p1 to p4
	var kept []string
	for _, p := range all[proposalRow](s.state.View().txn, false, tableProposals, "index") {
		kept = append(kept, p.ID)
	}
	if fmt.Sprint(kept) != "[p2 p3 p4]" {
		t.Fatalf("kept %v", kept)
	}
	// Still so after a restore, which derives the count.
	again := reopened(t, s.state)
	again.bounds = s.state.bounds
	e, _ := NewEntry("p5", "a", epoch, joinToken("d"))
	again.Apply(5, e)
	if n := len(all[proposalRow](again.View().txn, false, tableProposals, "id")); n != 3 {
		t.Errorf("%d proposals after a restore", n)
	}
}

func TestRetryAfterRestoreReturnsTheFirstResult(t *testing.T) {
	s := fleetOf(t, 1)
	ok, _ := NewEntry("ok", "user:ann", epoch, JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"})
	no, _ := NewEntry("no", "user:ann", epoch, JobCreated{JobID: "k", HostID: "h1", TargetVersion: "B"})
	s.state.Apply(500, ok)
	first := s.state.Apply(501, no)
	again := reopened(t, s.state)
	if r := again.Apply(502, ok); r.Err != nil || r.Index != 500 {
		t.Errorf("accepted: %+v", r)
	}
	r := again.Apply(503, no)
	if r.Err == nil || *r.Err != *first.Err || r.Index != 501 {
		t.Errorf("refused: %+v", r)
	}
	if i := again.View().Index(); i != 503 {
		t.Errorf("index %d", i)
	}
}

func TestAuditKeepsTheNewest(t *testing.T) {
	s := newScript(t)
	s.state.bounds.audit = 3
	s.must(cluster(), joinToken("a"), joinToken("b"), joinToken("c"), joinToken("d"))
	var kept []uint64
	for _, a := range s.state.View().Audit(0, 10) {
		kept = append(kept, a.Index)
	}
	if fmt.Sprint(kept) != "[5 4 3]" {
		t.Errorf("kept %v", kept)
	}
	if a := s.state.View().Audit(5, 1); len(a) != 1 || a[0].Index != 4 {
		t.Errorf("page below 5: %+v", a)
	}
}

func TestJobLogQueries(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"}, JobCreated{JobID: "j2", HostID: "h2", TargetVersion: "B"})
	for range 300 { // more than a byte counts
		s.must(JobLogAppended{JobID: "j", Lines: []LogLine{{Line: "x"}}})
	}
	s.must(JobLogAppended{JobID: "j2", First: 4, Lines: []LogLine{{Line: "x"}, {Line: "y"}}})
	v := s.state.View()
	for _, c := range []struct {
		id    string
		after uint64
		limit int
		lines int
		first uint64
	}{
		{"j", 0, 1000, 300, 1},
		{"j", 254, 10, 10, 255},
		{"j", 300, 10, 0, 0},
		{"j", 0, 0, 0, 0},
		{"j", math.MaxUint64, 10, 0, 0},
		{"j2", 0, 10, 2, 1},
		{"none", 0, 10, 0, 0},
	} {
		got := v.JobLog(c.id, c.after, c.limit)
		if len(got) != c.lines || c.lines > 0 && got[0].Seq != c.first {
			t.Errorf("%+v: %d lines", c, len(got))
		}
	}
	if n := v.JobLogHostSeq("j2"); n != 5 {
		t.Errorf("host seq %d", n)
	}
	s.refused(CodeBadRequest, JobLogAppended{JobID: "j", First: math.MaxUint64, Lines: make([]LogLine, 2)})
}

// A host can't speak as the coordinator, and a line without a time gets one.
func TestHostLinesAreMarked(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(JobCreated{JobID: "j", HostID: "h1", TargetVersion: "B"},
		JobLogAppended{JobID: "j", First: 1, Lines: []LogLine{{Stream: StreamCoordinator}, {Stream: StreamOutput}, {Stream: "x"}}},
		JobLogAppended{JobID: "j", Lines: []LogLine{{Stream: StreamCoordinator}}})
	var got []string
	for _, l := range s.state.View().JobLog("j", 0, 10) {
		got = append(got, l.Stream)
		if l.At.Before(epoch) {
			t.Errorf("line at %s", l.At)
		}
	}
	if fmt.Sprint(got) != "[agent output agent coordinator]" {
		t.Errorf("streams %v", got)
	}
}

// Each limit of a change's input, by the message's naming of the field.
func TestInputLimits(t *testing.T) {
	long := strings.Repeat("a", 65)
	enrol := func(change func(*Host)) Change {
		h := host(7)
		change(&h)
		return HostEnrolled{TokenHash: "k", Host: h}
	}
	publish := func(change func(*Release)) Change {
		c := release("C", 3)
		c.Release.Artifacts = append([]Artifact(nil), c.Release.Artifacts...)
		change(&c.Release)
		return c
	}
	token := func(change func(*JoinToken)) Change {
		c := joinToken("new")
		change(&c.Token)
		return c
	}
	first := func(change func(*ClusterInitialized)) Change {
		c := cluster()
		change(&c)
		return c
	}
	user := User{ID: "u9", Name: "ann", Role: Viewer, PasswordHash: "x"}
	userWith := func(change func(*User)) Change {
		u := user
		change(&u)
		return UserCreated{User: u}
	}
	api := func(change func(*APIToken)) Change {
		k := APIToken{ID: "t9", Name: "ci", Role: Viewer, Hash: "h9"}
		change(&k)
		return APITokenCreated{Token: k}
	}
	hook := func(change func(*Webhook)) Change {
		c := webhook("w9")
		change(&c.Webhook)
		return c
	}
	begun := func(change func(*EpochBegun)) Change {
		c := epochBegun(1, "s1")
		change(&c)
		return c
	}
	keysWith := func(change func(*ReleaseKeysChanged)) Change {
		c := keysChanged(1)
		change(&c)
		return c
	}
	past := epoch
	labels := map[string]string{}
	for i := range MaxLabels + 1 {
		labels[fmt.Sprint(i)] = ""
	}
	for _, c := range []struct {
		field  string
		change Change
	}{
		{"name", enrol(func(h *Host) { h.Name = "" })},
		{"name", enrol(func(h *Host) { h.Name = long })},
		{"name", enrol(func(h *Host) { h.Name = "a b" })},
		{"name", enrol(func(h *Host) { h.Name = "ä" })},
		{"name", enrol(func(h *Host) { h.Name = "../x" })},
		{"host.id", enrol(func(h *Host) { h.ID = "h\x00" })},
		{"host.id", enrol(func(h *Host) { h.ID = "" })},
		{"public_key", enrol(func(h *Host) { h.PublicKey = h.PublicKey[:31] })},
		{"os", enrol(func(h *Host) { h.OS = "" })},
		{"arch", enrol(func(h *Host) { h.Arch = long })},
		{"gossip_addr", enrol(func(h *Host) { h.GossipAddr = strings.Repeat("a", MaxAddressBytes+1) })},
		{"peer_addr", HostAddressesChanged{HostID: "h1", PeerAddr: strings.Repeat("a", MaxAddressBytes+1)}},
		{"also_segments", enrol(func(h *Host) { h.Also = make([]HostSegment, MaxAlsoSegments+1) })},
		{"also_segments: segment", enrol(func(h *Host) { h.Also = []HostSegment{{"a b", "10.0.0.1:1"}} })},
		{"also_segments: the host is in segment default already", enrol(func(h *Host) { h.Also = []HostSegment{{DefaultSegment, "10.0.0.1:1"}} })},
		{"also_segments: the host is in segment dmz already", HostSegmentsChanged{HostID: "h1", Also: []HostSegment{{"dmz", "10.0.0.1:1"}, {"dmz", "10.0.0.1:2"}}}},
		{"also_segments: the gossip_addr in segment dmz", HostSegmentsChanged{HostID: "h1", Also: []HostSegment{{"dmz", strings.Repeat("a", MaxAddressBytes+1)}}}},
		{"also_segments: the gossip_addr in segment dmz", HostSegmentsChanged{HostID: "h1", Also: []HostSegment{{"dmz", ""}}}},
		{"labels", enrol(func(h *Host) { h.Labels = labels })},
		{"labels", enrol(func(h *Host) { h.Labels = map[string]string{"": "x"} })},
		{"labels", enrol(func(h *Host) { h.Labels = map[string]string{"a": long} })},
		{"labels", HostLabelsSet{HostID: "h1", Labels: labels}},
		{"labels", HostLabelsSet{HostID: "h1", Labels: map[string]string{"a b": "x"}}},
		{"labels", HostLabelsSet{HostID: "h1", Labels: map[string]string{"a": "<script>"}}},
		{"labels", HostLabelsSet{HostID: "h1", Labels: map[string]string{long: "x"}}},
		{"version", publish(func(r *Release) { r.Version = long })},
		{"version", publish(func(r *Release) { r.Version = "1 2" })},
		{"number", publish(func(r *Release) { r.Number = 0 })},
		{"manifest", publish(func(r *Release) { r.Manifest = make([]byte, MaxManifestBytes+1) })},
		{"signature", publish(func(r *Release) { r.Signature = make([]byte, MaxSignatureBytes+1) })},
		{"artifacts", publish(func(r *Release) { r.Artifacts = nil })},
		{"artifacts", publish(func(r *Release) { r.Artifacts = make([]Artifact, MaxArtifacts+1) })},
		{"artifacts[0].os", publish(func(r *Release) { r.Artifacts[0].OS = "../x" })},
		{"artifacts[0].arch", publish(func(r *Release) { r.Artifacts[0].Arch = "" })},
		{"artifacts[0].size", publish(func(r *Release) { r.Artifacts[0].Size = 0 })},
		{"artifacts[0].sha256", publish(func(r *Release) { r.Artifacts[0].SHA256 = strings.Repeat("A", 64) })},
		{"artifacts names linux/amd64 twice", publish(func(r *Release) { r.Artifacts = append(r.Artifacts, r.Artifacts[0]) })},
		{"keys has 0", keysWith(func(c *ReleaseKeysChanged) { c.Keys = nil })},
		{"keys has 9", keysWith(func(c *ReleaseKeysChanged) { c.Keys = make([]string, MaxReleaseKeys+1) })},
		{"keys[0]", keysWith(func(c *ReleaseKeysChanged) { c.Keys[0] = "" })},
		{"keys[0]", keysWith(func(c *ReleaseKeysChanged) { c.Keys[0] = "RW\xff" })},
		{"keys[0]", keysWith(func(c *ReleaseKeysChanged) { c.Keys[0] = strings.Repeat("a", MaxReleaseKeyBytes+1) })},
		{"threshold", keysWith(func(c *ReleaseKeysChanged) { c.Threshold = 0 })},
		{"threshold", keysWith(func(c *ReleaseKeysChanged) { c.Threshold = 2 })},
		{"statement", keysWith(func(c *ReleaseKeysChanged) { c.Signed.Statement = nil })},
		{"statement", keysWith(func(c *ReleaseKeysChanged) { c.Signed.Statement = make([]byte, MaxStatementBytes+1) })},
		{"signature", keysWith(func(c *ReleaseKeysChanged) { c.Signed.Signature = nil })},
		{"signature", keysWith(func(c *ReleaseKeysChanged) { c.Signed.Signature = make([]byte, MaxSignatureBytes+1) })},
		{"token.id", token(func(k *JoinToken) { k.ID = "" })},
		{"token.hash", token(func(k *JoinToken) { k.Hash = long })},
		{"role", token(func(k *JoinToken) { k.Role = "root" })},
		{"segment", token(func(k *JoinToken) { k.Segment = strings.Repeat("a", MaxSegmentBytes+1) })},
		{"ttl", token(func(k *JoinToken) { k.ExpiresAt = epoch })},
		{"job_id", JobCreated{JobID: "", HostID: "h1", TargetVersion: "B"}},
		{"job_id", JobCreated{JobID: "j\x00", HostID: "h1", TargetVersion: "B"}},
		{"id", FleetUpdateStarted{ID: "", TargetVersion: "B", HostIDs: []string{"h1"}}},
		{"id", FleetUpdateStarted{ID: "f\x00g", TargetVersion: "B", HostIDs: []string{"h1"}}},
		{"host_ids", FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: make([]string, MaxFleetHosts+1)}},
		{"host_ids", FleetUpdateStarted{ID: "f", TargetVersion: "B", HostIDs: []string{"h1", "h1"}}},
		{"user.id", userWith(func(u *User) { u.ID = "" })},
		{"name", userWith(func(u *User) { u.Name = "<b>" })},
		{"role", userWith(func(u *User) { u.Role = "root" })},
		{"password", userWith(func(u *User) { u.PasswordHash = "" })},
		{"password_hash", userWith(func(u *User) { u.PasswordHash = strings.Repeat("a", MaxPasswordHashBytes+1) })},
		{"password_hash", UserChanged{UserID: "u1", PasswordHash: strings.Repeat("a", MaxPasswordHashBytes+1)}},
		{"role", UserChanged{UserID: "u1", Role: "root"}},
		{"role", UserChanged{UserID: "u1"}},
		{"token.id", api(func(k *APIToken) { k.ID = "" })},
		{"token.hash", api(func(k *APIToken) { k.Hash = "" })},
		{"name", api(func(k *APIToken) { k.Name = long })},
		{"role", api(func(k *APIToken) { k.Role = "" })},
		{"expires_at", api(func(k *APIToken) { k.ExpiresAt = &past })},
		{"session.hash", SessionCreated{Session: Session{UserID: "u1", ExpiresAt: epoch.AddDate(1, 0, 0)}}},
		{"session.expires_at", SessionCreated{Session: Session{Hash: "s", UserID: "u1"}}},
		{"webhook.id", hook(func(w *Webhook) { w.ID = "" })},
		{"name", hook(func(w *Webhook) { w.Name = "<b>" })},
		{"format", hook(func(w *Webhook) { w.Format = "xml" })},
		{"url", hook(func(w *Webhook) { w.URL = "" })},
		{"url", hook(func(w *Webhook) { w.URL = "ftp://host/" })},
		{"url", hook(func(w *Webhook) { w.URL = "https:///path" })},
		{"url", hook(func(w *Webhook) { w.URL = "https://:443/path" })},
		{"url", hook(func(w *Webhook) { w.URL = "https://ann:pw@host/" })},
		{"url", hook(func(w *Webhook) { w.URL = "https://host/a b" })},
		{"url", hook(func(w *Webhook) { w.URL = "https://host/\n" })},
		{"url", hook(func(w *Webhook) { w.URL = "https://host/#x" })},
		{"url", hook(func(w *Webhook) { w.URL = "https://höst/" })},
		{"url", hook(func(w *Webhook) { w.URL = "https://host/" + strings.Repeat("a", MaxURLBytes) })},
		{"bearer_token", hook(func(w *Webhook) { w.BearerToken = "a b" })},
		{"bearer_token", hook(func(w *Webhook) { w.BearerToken = strings.Repeat("a", MaxBearerBytes+1) })},
		{"signing_secret", hook(func(w *Webhook) { w.SigningSecret = "short" })},
		{"signing_secret", hook(func(w *Webhook) { w.SigningSecret = "whsec_no*base64*at*all" })},
		{"signing_secret", hook(func(w *Webhook) { w.SigningSecret = strings.Repeat("a", MaxSecretBytes+1) })},
		{"kinds[0]", hook(func(w *Webhook) { w.Kinds = []string{"moons"} })},
		{"kinds", hook(func(w *Webhook) { w.Kinds = []string{AlertUpdateFailed, AlertUpdateFailed} })},
		{"cluster.id", first(func(c *ClusterInitialized) { c.Cluster.ID = "" })},
		{"server.id", first(func(c *ClusterInitialized) { c.Server.ID = "" })},
		{"server.name", first(func(c *ClusterInitialized) { c.Server.Name = "" })},
		{"server.segment", first(func(c *ClusterInitialized) { c.Server.Segment = "a b" })},
		{"token.hash", first(func(c *ClusterInitialized) { c.Token.Hash = "" })},
		{"statement", begun(func(c *EpochBegun) { c.Statement = nil })},
		{"statement", begun(func(c *EpochBegun) { c.Statement = make([]byte, MaxStatementBytes+1) })},
		{"server.segment", begun(func(c *EpochBegun) { c.Server.Segment = "" })},
		{"name", begun(func(c *EpochBegun) { c.Server.Name = "a b" })},
		{"public_key", begun(func(c *EpochBegun) { c.Server.PublicKey = nil })},
		{"peer_addr", begun(func(c *EpochBegun) { c.Server.PeerAddr = strings.Repeat("a", MaxAddressBytes+1) })},
		{"host_id", ServerStandbyChanged{HostID: "h1", Standby: true}},
	} {
		s := newScript(t)
		if _, isFirst := c.change.(ClusterInitialized); !isFirst {
			s = fleetOf(t, 1)
			s.must(joinToken("k"))
		}
		before := decided(s.state)
		err := s.apply(c.change)
		if err == nil || err.Code != CodeBadRequest || !strings.Contains(err.Message, c.field) {
			t.Errorf("%s %s: got %v", c.change.Kind(), c.field, err)
		}
		if decided(s.state) != before {
			t.Errorf("%s %s: the refused change changed the state", c.change.Kind(), c.field)
		}
	}
}

// What is at a limit is accepted, and labels are kept.
func TestInputAtTheLimits(t *testing.T) {
	s := fleetOf(t, 0)
	h := host(1)
	h.Name, h.Labels = strings.Repeat("a", MaxNameBytes), map[string]string{"site": "ber-1", "empty": ""}
	h.PeerAddr = strings.Repeat("a", MaxAddressBytes)
	s.must(joinToken("k"), HostEnrolled{TokenHash: "k", Host: h}, release(strings.Repeat("1", MaxVersionBytes), 9), release("1.2.3-rc.1+build_7", 10))
	if got, _ := s.state.View().Host(h.ID); got.Labels["site"] != "ber-1" {
		t.Errorf("host: %+v", got)
	}
}

// Times and makers come from the entry, whatever the body says.
func TestTimesAndMakersComeFromTheEntry(t *testing.T) {
	s := fleetOf(t, 1)
	liar := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	expires := epoch.AddDate(1, 0, 0)
	c := release("C", 3)
	c.Release.PublishedAt, c.Release.PublishedBy = liar, "mallory"
	s.must(c,
		JoinTokenCreated{Token: JoinToken{ID: "k", Hash: "k", Role: RoleAgent, ExpiresAt: expires, CreatedAt: liar, CreatedBy: "mallory", UsedAt: &liar, UsedBy: "h1"}},
		APITokenCreated{Token: APIToken{ID: "a", Name: "a", Role: Viewer, Hash: "a", CreatedAt: liar, CreatedBy: "mallory"}},
		UserCreated{User: User{ID: "u", Name: "u", Role: Viewer, PasswordHash: "x", CreatedAt: liar}},
		SessionCreated{Session: Session{Hash: "s", UserID: "u", CreatedAt: liar, ExpiresAt: expires}})
	v := s.state.View()
	k, _ := v.JoinTokenByHash("k")
	r, _ := v.Release("C")
	a, _ := v.APITokenByHash("a")
	u, _ := v.User("u")
	ss, _ := v.Session("s")
	cl, _ := v.Cluster()
	srv, _ := v.Host("s1")
	for what, at := range map[string]time.Time{
		"join token": k.CreatedAt, "release": r.PublishedAt, "API token": a.CreatedAt, "user": u.CreatedAt,
		"session": ss.CreatedAt, "cluster": cl.CreatedAt, "server": srv.EnrolledAt,
	} {
		if at.Before(epoch) {
			t.Errorf("%s was made at %s", what, at)
		}
	}
	if k.UsedAt != nil || k.UsedBy != "" || k.CreatedBy != "user:ann" || r.PublishedBy != "user:ann" || a.CreatedBy != "user:ann" {
		t.Errorf("%+v %+v %+v", k, r, a)
	}
}

// An ID or a hash that is taken is refused: an insert would replace the row.
func TestTakenIDsAreRefused(t *testing.T) {
	s := fleetOf(t, 1)
	expires := epoch.AddDate(1, 0, 0)
	session := SessionCreated{Session: Session{Hash: "s", UserID: "u1", ExpiresAt: expires}}
	api := func(id, hash string) Change {
		return APITokenCreated{Token: APIToken{ID: id, Name: "n", Role: Viewer, Hash: hash}}
	}
	join := func(id, hash string) Change {
		return JoinTokenCreated{Token: JoinToken{ID: id, Hash: hash, Role: RoleAgent, ExpiresAt: expires}}
	}
	s.must(api("a", "a"), join("k", "k"), session)
	for _, c := range []Change{api("a", "b"), api("b", "a"), join("k", "l"), join("l", "k"), session} {
		s.wants(CodeConflict, c)
	}
	s.must(joinToken("free"))
	s.wants(CodeConflict, HostEnrolled{TokenHash: "free", Host: Host{ID: "h1", Name: "other", OS: "linux", Arch: "amd64", PublicKey: host(1).PublicKey}})
	s.wants(CodeUserExists, UserCreated{User: User{ID: "u1", Name: "other", Role: Viewer, PasswordHash: "x"}})
	s.wants(CodeUserExists, UserCreated{User: User{ID: "other", Name: "admin", Role: Viewer, PasswordHash: "x"}})
}

func TestChangedOrDeletedUserIsSignedOut(t *testing.T) {
	s := fleetOf(t, 0)
	s.must(UserCreated{User: User{ID: "u2", Name: "bob", Role: Admin, PasswordHash: "x"}})
	for i, c := range []Change{UserChanged{UserID: "u2", PasswordHash: "y"}, UserChanged{UserID: "u2", Role: Viewer}, UserDeleted{UserID: "u2"}} {
		hash := fmt.Sprint("s", i)
		other := "other" + hash
		s.must(SessionCreated{Session: Session{Hash: hash, UserID: "u2", ExpiresAt: epoch.AddDate(1, 0, 0)}},
			SessionCreated{Session: Session{Hash: other, UserID: "u1", ExpiresAt: epoch.AddDate(1, 0, 0)}}, c)
		if _, ok := s.state.View().Session(hash); ok {
			t.Errorf("%+v: still signed in", c)
		}
		if _, ok := s.state.View().Session(other); !ok {
			t.Errorf("%+v: somebody else was signed out", c)
		}
	}
}

// Malformed bodies are refused with the field's name and in words that don't
// come from encoding/json.
func TestMalformedBodiesNameTheField(t *testing.T) {
	for i, c := range []struct{ kind, body, says string }{
		{"job_created", `{"job_id":7}`, "job_id"},
		{"job_finished", `{"job_id":"j","sources":[{"bytes":"x"}]}`, "sources.bytes"},
		{"session_created", `{"session":{"expires_at":"noon"}}`, "session"},
		{"release_published", `{"release":{"manifest":"*"}}`, "release"},
		{"job_created", `{"job_id":"j"`, "not valid JSON"},
		{"job_created", `{} {}`, "not valid JSON"},
		{"job_created", ``, "not a JSON object"},
		{"job_created", `null`, "not a JSON object"},
		{"job_created", `[]`, "not a JSON object"},
	} {
		s := fleetOf(t, 1)
		err := s.state.Apply(1000, Entry{Type: c.kind, Version: 1, ID: fmt.Sprint(i), Actor: "a", At: epoch, Body: json.RawMessage(c.body)}).Err
		if err == nil || err.Code != CodeBadRequest || !strings.Contains(err.Message, c.says) || strings.Contains(err.Message, "json:") {
			t.Errorf("%s: got %v, want it to say %q", c.body, err, c.says)
		}
	}
}

func TestEnvelopeLimits(t *testing.T) {
	good, _ := NewEntry("p", "user:ann", epoch, joinToken("k"))
	for what, spoil := range map[string]func(*Entry){
		"actor is empty": func(e *Entry) { e.Actor = "" },
		"actor is 129":   func(e *Entry) { e.Actor = strings.Repeat("a", MaxActorBytes+1) },
		`id ""`:          func(e *Entry) { e.ID = "" },
		"id \"a b\"":     func(e *Entry) { e.ID = "a b" },
		"at is after":    func(e *Entry) { e.At = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		e := good
		spoil(&e)
		s := fleetOf(t, 1)
		if err := s.state.Apply(1000, e).Err; err == nil || err.Code != CodeBadRequest || !strings.Contains(err.Message, what) {
			t.Errorf("%s: got %v", what, err)
		}
		s.state.Hash() // and nothing that can't be written is stored
	}
}

// A kind from the future may break every rule of today and is counted.
func TestUnknownKindIsToldFirst(t *testing.T) {
	s := fleetOf(t, 1)
	for i, e := range []Entry{{}, {Type: strings.Repeat("x", 1<<20)}, {Type: "job_created", Version: 2}} {
		if err := s.state.Apply(uint64(1000+i), e).Err; err == nil || err.Code != CodeUnknownChange || len(err.Message) > MaxMessageBytes {
			t.Errorf("entry %d: got %v", i, err)
		}
	}
	if n := reopened(t, s.state).View().Unknown(); n != 3 {
		t.Errorf("counted %d", n)
	}
}

func TestDecodeEntry(t *testing.T) {
	e, _ := NewEntry("p", "user:ann", epoch, joinToken("k"))
	b, _ := json.Marshal(e)
	if got, err := DecodeEntry(b); err != nil || got.ID != "p" || !got.At.Equal(epoch) {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := DecodeEntry([]byte(`{"type":"x","later":true}`)); err != nil {
		t.Errorf("a field of a newer server: %v", err)
	}
	for _, bad := range []string{"", "x", `{"at":"noon"}`, `{"type":1}`, string(b) + "x", string(b[:len(b)-1])} {
		if _, err := DecodeEntry([]byte(bad)); err == nil {
			t.Errorf("%.30q: decoded", bad)
		}
	}
}

func FuzzDecodeEntry(f *testing.F) {
	for kind := range appliers {
		f.Add(fmt.Appendf(nil, `{"type":%q,"version":1,"id":"p","actor":"a","at":"2026-01-02T03:04:05Z","body":{"job_id":"j","host_id":"h1","id":"f"}}`, kind))
	}
	s := fleetOf(f, 1)
	for _, e := range s.log {
		b, _ := json.Marshal(e)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEntry(b)
		if err != nil {
			return
		}
		for _, s := range []*State{New(), fleetOf(t, 1).state} {
			s.Apply(1000, e)
			queries(s.View())
			if reopened(t, s).Hash() != s.Hash() {
				t.Error("a restore gives another state")
			}
		}
	})
}
