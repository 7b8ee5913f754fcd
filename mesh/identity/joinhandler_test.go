package identity_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"moult/mesh/identity"
)

// signedRequest is what a host sends, as Join makes it.
func signedRequest(t testing.TB, secret string, key ed25519.PrivateKey) identity.JoinRequest {
	t.Helper()
	r := newcomer()
	r.HostID, r.Secret, r.PublicKey = hostID, secret, public(key)
	sign(&r, key)
	return r
}

// sign is the contract between hosts and servers of different versions.
func sign(r *identity.JoinRequest, key ed25519.PrivateKey) {
	sum := sha256.Sum256([]byte(r.Secret))
	r.Signature = ed25519.Sign(key, fmt.Appendf(nil, "moult join 1\n%s\n%s\n%x", hex.EncodeToString(sum[:]), r.HostID, r.PublicKey))
}

// post asks a handler without TLS, and returns what enroll was given.
func post(t testing.TB, body string) (status int, answer string, enrolled *identity.JoinRequest) {
	t.Helper()
	h := identity.JoinHandler(func(_ context.Context, r identity.JoinRequest, _ string) (identity.Enrolment, error) {
		enrolled = &r
		return identity.Enrolment{}, nil
	})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/join", strings.NewReader(body)))
	return w.Code, w.Body.String(), enrolled
}

func TestJoinRequestsAreChecked(t *testing.T) {
	key := mustKey(t)
	encode := func(r identity.JoinRequest) string {
		text, err := json.Marshal(r)
		must(t, err)
		return string(text)
	}
	good := signedRequest(t, "secret", key)
	if status, answer, enrolled := post(t, encode(good)); status != http.StatusOK || enrolled == nil {
		t.Fatalf("a good request: %d %s", status, answer)
	}
	if status, answer, enrolled := post(t, strings.Replace(encode(good), "{", `{"of_a_newer_host":1,`, 1)); status != http.StatusOK || enrolled == nil {
		t.Errorf("an unknown field: %d %s", status, answer)
	}
	for name, spoil := range map[string]func(*identity.JoinRequest){
		"secret: empty":             func(r *identity.JoinRequest) { r.Secret = "" },
		"signature: secret altered": func(r *identity.JoinRequest) { r.Secret = "sEcret" },
		"signature: host altered":   func(r *identity.JoinRequest) { r.HostID = clusterID },
		"signature: key altered":    func(r *identity.JoinRequest) { r.PublicKey = public(mustKey(t)) },
		"signature: missing":        func(r *identity.JoinRequest) { r.Signature = nil },
		"host_id: not a UUID":       func(r *identity.JoinRequest) { r.HostID = "../../server/s1"; sign(r, key) },
		"host_id: upper case":       func(r *identity.JoinRequest) { r.HostID = strings.ToUpper(hostID); sign(r, key) },
		"host_id: newline":          func(r *identity.JoinRequest) { r.HostID += "\n"; sign(r, key) },
		"secret: newline":           func(r *identity.JoinRequest) { r.Secret += "\n"; sign(r, key) },
		"public_key: short":         func(r *identity.JoinRequest) { r.PublicKey = r.PublicKey[:31] },
		"also: too many":            func(r *identity.JoinRequest) { r.Also = make([]identity.SegmentAddr, 4) },
		"also.segment: empty":       func(r *identity.JoinRequest) { r.Also = []identity.SegmentAddr{{GossipAddr: "10.0.0.1:1"}} },
		"also.gossip_addr: no port": func(r *identity.JoinRequest) {
			r.Also = []identity.SegmentAddr{{Segment: "dmz", GossipAddr: "10.0.0.1"}}
		},
		"name: empty":                       func(r *identity.JoinRequest) { r.Name = "" },
		"name: escape sequence":             func(r *identity.JoinRequest) { r.Name = "web\x1b[2J" },
		"name: too long":                    func(r *identity.JoinRequest) { r.Name = strings.Repeat("x", 256) },
		"os: empty":                         func(r *identity.JoinRequest) { r.OS = "" },
		"version: escape sequence":          func(r *identity.JoinRequest) { r.Version = "1\x00" },
		"gossip_addr: no port":              func(r *identity.JoinRequest) { r.GossipAddr = "10.0.0.5" },
		"gossip_addr: port 0":               func(r *identity.JoinRequest) { r.GossipAddr = "10.0.0.5:0" },
		"peer_addr: port is a word":         func(r *identity.JoinRequest) { r.PeerAddr = "10.0.0.5:https" },
		"http_addr: port too high":          func(r *identity.JoinRequest) { r.HTTPAddr = "10.0.0.5:65536" },
		"peer_addr: more than one, in line": func(r *identity.JoinRequest) { r.PeerAddr = "10.0.0.5:7947,10.0.0.6:7947" },
	} {
		r := good
		spoil(&r)
		status, answer, enrolled := post(t, encode(r))
		field, _, _ := strings.Cut(name, ":")
		var body struct{ Error identity.CodedError }
		if err := json.Unmarshal([]byte(answer), &body); err != nil || status != http.StatusBadRequest || enrolled != nil || body.Error.Code != "bad_request" || !strings.HasPrefix(body.Error.Message, field+":") {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	for name, body := range map[string]string{"nothing": "", "no JSON": "MOULT1", "a list": "[]", "too long": `{"name":"` + strings.Repeat("x", 1<<17) + `"}`} {
		if status, answer, enrolled := post(t, body); status != http.StatusBadRequest || enrolled != nil {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
}

func FuzzJoinRequest(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	text, err := json.Marshal(signedRequest(f, "secret", key))
	must(f, err)
	f.Add(string(text))
	f.Add(`{"host_id":"0b6d1d5e-4a0c-4c3e-9a0e-000000000002","name":"x","gossip_addr":"[::%25eth0]:1"}`)
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, body string) {
		status, answer, enrolled := post(t, body)
		if enrolled == nil {
			if status != http.StatusBadRequest || !json.Valid([]byte(answer)) {
				t.Fatalf("%d %s", status, answer)
			}
			return
		}
		// Who gets this far holds the key, and nothing in it can break out of a line
		// or of a certificate's URI.
		if !public(key).Equal(ed25519.PublicKey(enrolled.PublicKey)) || enrolled.HostID != hostID {
			t.Fatalf("let in without a signature: %#v", enrolled)
		}
		for _, s := range []string{enrolled.Name, enrolled.OS, enrolled.Arch, enrolled.Version, enrolled.GossipAddr, enrolled.PeerAddr, enrolled.HTTPAddr} {
			if strings.ContainsAny(s, "\n\r\x00\x1b") || len(s) > 300 {
				t.Fatalf("%q gets through", s)
			}
		}
	})
}
