package webui

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/updater/release"
)

// mustKey makes a release key pair; public is its line.
func mustKey(tb testing.TB) (public, secret string) {
	tb.Helper()
	text, secret, err := release.GenerateKey()
	if err != nil {
		tb.Fatal(err)
	}
	if public, err = release.ParsePublicKey(text); err != nil {
		tb.Fatal(err)
	}
	return public, secret
}

// keyStatement is the body that brings a signed statement.
func (w *world) keyStatement(secret string, number uint64, keys ...string) string {
	w.tb.Helper()
	signed, err := release.SignStatement(secret, release.Statement{Cluster: "cluster-1", Number: number, Threshold: 1, Keys: keys, Created: w.clock.Now()})
	if err != nil {
		w.tb.Fatal(err)
	}
	body, err := json.Marshal(keyStatementBody{string(signed.Statement), string(signed.Signature)})
	if err != nil {
		w.tb.Fatal(err)
	}
	return string(body)
}

func TestReleaseKeysChangeOnlyByTheirOwnWord(t *testing.T) {
	first, firstSecret := mustKey(t)
	second, secondSecret := mustKey(t)
	w := StartWorldWith(t, first)
	a, _ := w.MustEnrol("a", "1.0.0", true), w.MustEnrol("b", "1.0.0", true)
	follows := map[string]uint64{}
	w.config.FollowedKeys = func() map[string]uint64 { return follows }
	handler, err := New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.handler = handler

	const path = "/api/release-keys"
	good := w.keyStatement(firstSecret, 1, first, second)
	for code, fail := range map[string]error{codeUnavailable: errNotCommitted, fleet.CodeUnknownChange: refuse(fleet.CodeUnknownChange, "update all servers first")} {
		w.log.fail = fail
		w.Admin("POST", path, good).Refused(503, code)
	}
	w.log.fail = nil
	for name, tc := range map[string]struct {
		body, code string
		status     int
	}{
		"a stranger's":      {w.keyStatement(secondSecret, 1, second), "bad_signature", 400},
		"one left out":      {w.keyStatement(firstSecret, 2, second), "conflict", 409},
		"altered":           {strings.Replace(good, `\"threshold\": 1`, `\"threshold\": 2`, 1), "bad_signature", 400},
		"no statement":      {`{"statement":"","signature":"x"}`, "bad_request", 400},
		"nothing":           {``, "bad_request", 400},
		"an unknown field":  {`{"statement":"","sig":"x"}`, "bad_request", 400},
		"from next week":    {w.laterStatement(firstSecret, second), "bad_request", 400},
		"another cluster's": {strings.Replace(good, "cluster-1", "cluster-2", 1), "bad_request", 400},
	} {
		if message := w.Admin("POST", path, tc.body).Refused(tc.status, tc.code); len(message) < 20 {
			t.Errorf("%s: %q", name, message)
		}
	}
	if c, _ := w.state.View().Cluster(); c.KeysNumber != 0 || !slices.Equal(c.ReleaseKeys, []string{first}) {
		t.Fatalf("refused statements changed the keys: %+v", c)
	}
	w.Admin("POST", path, good).OK()
	w.Admin("POST", path, good).Refused(409, "conflict")
	w.Admin("POST", path, w.keyStatement(firstSecret, 1, first)).Refused(409, "conflict") // another one with its number
	if c, _ := w.state.View().Cluster(); len(c.KeyStatements) != 1 || !slices.Equal(c.ReleaseKeys, []string{first, second}) {
		t.Fatalf("a second statement 1 changed the keys: %+v", c)
	}

	follows[a] = 1
	got := w.Admin("GET", path, "").OK()
	behind, _ := got["hosts_behind"].([]any)
	if got["number"] != 1.0 || got["threshold"] != 1.0 || got["cluster"] != "cluster-1" || len(behind) != 1 || behind[0] != "b" {
		t.Errorf("%v", got)
	}
	w.Admin("GET", "/releases", "").Shows("the signature of one of these keys", "Hosts follow key statement 1", strings.ReplaceAll(first, "+", "&#43;"), strings.ReplaceAll(second, "+", "&#43;"), "1 host has not said yet that it follows it: b")
	// Now the second key speaks as well, and takes the first one out.
	w.Admin("POST", path, w.keyStatement(secondSecret, 2, second)).OK()
	w.Admin("POST", path, w.keyStatement(firstSecret, 3, first)).Refused(400, "bad_signature")
	entries := w.Admin("GET", "/api/audit?action=release_keys_changed", "").OK()["entries"].([]any)
	if len(entries) != 2 || entries[0].(map[string]any)["subject"] != "release keys 2" {
		t.Errorf("the audit has %v", entries)
	}
	c, _ := w.state.View().Cluster()
	if set := ReleaseKeys(c); set.Number != 2 || !slices.Equal(set.Keys, []string{second}) {
		t.Errorf("the keys are %+v", set)
	}
}

// laterStatement is one whose maker's clock is wrong.
func (w *world) laterStatement(secret, key string) string {
	now := w.clock.now
	w.clock.now = now.Add(7 * 24 * time.Hour)
	defer func() { w.clock.now = now }()
	return w.keyStatement(secret, 1, key)
}

// A release that only a revoked key signed is shown as what it is.
func TestPageShowsReleasesOfRevokedKeys(t *testing.T) {
	first, firstSecret := mustKey(t)
	second, _ := mustKey(t)
	w := StartWorldWith(t, first)
	manifest := `{"product":"moult","version":"2.0.0","number":2,"created":"2026-03-01T12:00:00Z","artifacts":[{"os":"linux","arch":"amd64","size":1,"sha256":"` + strings.Repeat("a", 64) + `"}]}`
	signature, err := release.Sign(firstSecret, []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	w.MustPropose("user:x", fleet.ReleasePublished{Release: fleet.Release{
		Version: "2.0.0", Number: 2, Manifest: []byte(manifest), Signature: signature,
		Artifacts: []fleet.Artifact{{OS: "linux", Arch: "amd64", Size: 1, SHA256: strings.Repeat("a", 64)}},
	}})
	before := w.Admin("GET", "/releases", "").Body.String()
	w.Admin("POST", "/api/release-keys", w.keyStatement(firstSecret, 1, second)).OK()
	after := w.Admin("GET", "/releases", "").Body.String()
	const warning = "by a key that is not pinned now"
	if strings.Contains(before, warning) || !strings.Contains(after, warning) {
		t.Errorf("the warning is there before: %t, after: %t", strings.Contains(before, warning), strings.Contains(after, warning))
	}
}
