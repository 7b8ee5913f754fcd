package identity_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// A segment's key tells nothing of another's, nor of the secret; the first segment
// keeps the secret, and a rotation keeps the order of keys.
func TestGossipKeysOfSegments(t *testing.T) {
	secrets := [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}
	keys := func(cluster, segment string, secrets ...[]byte) string {
		t.Helper()
		k, err := identity.GossipKeys(secrets, []byte("the CA's key"), cluster, segment)
		must(t, err)
		if len(k) != len(secrets) {
			t.Errorf("%d keys of %d secrets", len(k), len(secrets))
		}
		for _, key := range k {
			if len(key) != 32 {
				t.Errorf("a key of %d bytes", len(key))
			}
		}
		return fmt.Sprintf("%x", k)
	}
	if got := keys("c1", "default", secrets...); got != fmt.Sprintf("%x", secrets) {
		t.Errorf("the default segment has %s", got)
	}
	seen := map[string]string{fmt.Sprintf("%x", secrets): "the secrets"}
	for _, cluster := range []string{"c1", "c2"} {
		for _, segment := range []string{"dmz", "dmz2", "Default"} {
			got := keys(cluster, segment, secrets...)
			if other := seen[got]; other != "" {
				t.Errorf("%s in %s has the keys of %s", segment, cluster, other)
			}
			seen[got] = segment + " in " + cluster
		}
	}
	other, err := identity.GossipKeys(secrets, []byte("another CA's key"), "c1", "dmz")
	if err != nil || seen[fmt.Sprintf("%x", other)] != "" {
		t.Errorf("who has the secrets only derives the keys of dmz, %v", err)
	}
	if _, err := identity.GossipKeys(secrets, nil, "c1", "dmz"); err == nil {
		t.Error("keys are derived without the CA's key")
	}
	// Written down: servers of all versions must derive the same.
	if got, want := keys("c1", "dmz", secrets[0]), "[f09c0248338b8e84a09f8120619fe1685e2570c1293596d3c6011e77077525bd]"; got != want {
		t.Errorf("the key of dmz in c1 is %s, was %s", got, want)
	}
	if both := keys("c1", "dmz", secrets...); !strings.HasPrefix(both, strings.TrimSuffix(keys("c1", "dmz", secrets[0]), "]")) {
		t.Error("the first secret's key does not come first")
	}
}

// segment is what a server might say of one.
func segment(name string, fill byte) identity.Segment {
	return identity.Segment{Name: name, GossipKeys: [][]byte{bytes.Repeat([]byte{fill}, 32)}, GossipJoin: []string{"10.2.0.1:7946"}}
}

func TestStoreKeepsFurtherSegments(t *testing.T) {
	dir, s, ca := joined(t)
	e := enrolment(t, s, ca, clusterID)
	e.Also = []identity.Segment{segment("dmz", 8), segment("plant", 9)}
	must(t, s.Save(e))
	got, err := mustStore(t, dir).Load()
	must(t, err)
	if !reflect.DeepEqual(got.Also, e.Also) {
		t.Errorf("kept %d segments", len(got.Also))
	}
	for name, want := range map[string]byte{"default": 7, "dmz": 8, "plant": 9} {
		if in, ok := got.In(name); !ok || in.GossipKeys[0][0] != want || len(in.GossipJoin) != 1 {
			t.Errorf("in %s: %v", name, ok)
		}
	}
	if _, ok := got.In("elsewhere"); ok {
		t.Error("it knows a segment that it is not in")
	}
	for says, also := range map[string][]identity.Segment{
		"at most":            make([]identity.Segment, 4),
		"names none":         {segment("", 8)},
		"stands there twice": {segment("dmz", 8), segment("dmz", 8)},
		"twice":              {segment("default", 8)},
		"none of segment":    {{Name: "dmz"}},
		"not 32":             {{Name: "dmz", GossipKeys: [][]byte{{1}}}},
	} {
		e.Also = also
		if err := s.Save(e); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", says, err)
		}
	}
}

// renewer is a server that renews for whoever the node port lets through.
func renewer(t testing.TB, ca *identity.CA, shown identity.Credentials, renew func(context.Context, identity.RenewRequest) (identity.Enrolment, error)) (addr string) {
	t.Helper()
	p, err := nodeport.Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return shown, true }, nil, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() { must(t, p.Close(context.Background())) })
	p.ServeHTTP(nodeport.Handlers{Peer: http.NotFoundHandler(), Renew: identity.RenewHandler(renew)})
	return p.Addr().String()
}

// The holder of the credentials has the fresh ones at once, the disk has them
// before, and what does not belong to this host changes nothing.
func TestRenewal(t *testing.T) {
	dir, s, ca := joined(t)
	creds, err := s.Load()
	must(t, err)
	current := identity.NewCurrent(s, creds)
	answer := enrolment(t, s, ca, clusterID)
	answer.Servers, answer.Also = []string{"10.0.0.2:7947"}, []identity.Segment{segment("dmz", 8)}
	var asked identity.RenewRequest
	addr := renewer(t, ca, credentials(t, ca, server("s1")), func(ctx context.Context, r identity.RenewRequest) (identity.Enrolment, error) {
		asked = r
		if id := nodeport.PeerFrom(ctx); id != creds.Identity || !public(creds.Key).Equal(nodeport.PeerKeyFrom(ctx)) {
			return identity.Enrolment{}, &identity.CodedError{Code: "host_not_found", Message: "who is " + id.String(), Status: 403}
		}
		return answer, nil
	})
	also := []identity.SegmentAddr{{Segment: "dmz", GossipAddr: "0.0.0.0:7946"}}
	e, err := identity.Renew(t.Context(), addr, current.Get(), identity.RenewRequest{Also: also})
	must(t, err)
	if len(asked.Also) != 1 || asked.Also[0] != (identity.SegmentAddr{Segment: "dmz", GossipAddr: "127.0.0.1:7946"}) {
		t.Errorf("asked %+v", asked)
	}
	fresh, err := current.Take(e)
	must(t, err)
	onDisk, err := mustStore(t, dir).Load()
	must(t, err)
	for name, c := range map[string]identity.Credentials{"taken": fresh, "current": current.Get(), "on disk": onDisk} {
		if !bytes.Equal(c.CertPEM, answer.CertPEM) || c.Servers[0] != "10.0.0.2:7947" || len(c.Also) != 1 {
			t.Errorf("%s: not what the server gave", name)
		}
	}
	issued, ends, err := fresh.Validity()
	if life := ends.Sub(issued); err != nil || life < time.Hour-time.Minute || life > time.Hour+time.Minute || len(fresh.CertDER()) == 0 {
		t.Errorf("valid for %v, %v", life, err)
	}

	other := mustStore(t, filepath.Join(t.TempDir(), "identity"))
	foreignCA := mustCA(t, clusterID, time.Now())
	for name, bad := range map[string]func(e *identity.Enrolment){
		"another host": func(e *identity.Enrolment) { *e = enrolment(t, other, ca, clusterID) },
		"another CA":   func(e *identity.Enrolment) { *e = enrolment(t, s, foreignCA, clusterID) },
		"another role": func(e *identity.Enrolment) {
			e.Role = identity.RoleServer
			e.CertPEM = mustIssue(t, ca, e.Identity, creds.Key, time.Now(), time.Hour)
		},
		"another cluster": func(e *identity.Enrolment) { e.Cluster = "elsewhere" },
		"no certificate":  func(e *identity.Enrolment) { e.CertPEM = nil },
		"an expired one": func(e *identity.Enrolment) {
			e.CertPEM = mustIssue(t, ca, e.Identity, creds.Key, time.Now().Add(-3*time.Hour), time.Hour)
		},
		"another key's": func(e *identity.Enrolment) {
			e.CertPEM = mustIssue(t, ca, e.Identity, mustKey(t), time.Now(), time.Hour)
		},
		"no gossip key at all": func(e *identity.Enrolment) { e.GossipKeys = nil },
	} {
		spoiled := enrolment(t, s, ca, clusterID)
		bad(&spoiled)
		if _, err := current.Take(spoiled); err == nil {
			t.Errorf("%s was taken", name)
		}
		if now, err := s.Load(); err != nil || !bytes.Equal(now.CertPEM, answer.CertPEM) || !bytes.Equal(current.Get().CertPEM, answer.CertPEM) {
			t.Errorf("%s left something behind: %v", name, err)
		}
	}
	// Only a server is asked, and its refusal arrives as it is.
	agentAddr := renewer(t, ca, credentials(t, ca, agent("a9")), nil)
	if _, err := identity.Renew(t.Context(), agentAddr, current.Get(), identity.RenewRequest{}); err == nil || !strings.Contains(err.Error(), "is not a server, and passes on to none now") {
		t.Errorf("an agent answered: %v", err)
	}
	var refused *identity.CodedError
	if _, err := identity.Renew(t.Context(), addr, credentials(t, ca, agent("a9")), identity.RenewRequest{}); !errors.As(err, &refused) || refused.Status != 403 || refused.Code != "host_not_found" {
		t.Errorf("refused: %v", err)
	}
}

func TestRenewalRequestsAreChecked(t *testing.T) {
	for body, says := range map[string]string{
		`{`:                      "does not parse",
		`{"also":[{},{},{},{}]}`: "also: it has 4 segments",
		`{"also":[{"segment":"","gossip_addr":"h:1"}]}`:        "also.segment",
		`{"also":[{"segment":"dmz","gossip_addr":"h"}]}`:       "also.gossip_addr",
		`{"also":[{"segment":"d\nmz","gossip_addr":"h:1"}]}`:   "also.segment",
		`{"also":[{"segment":"dmz","gossip_addr":"h:70000"}]}`: "also.gossip_addr",
	} {
		w := httptest.NewRecorder()
		identity.RenewHandler(func(context.Context, identity.RenewRequest) (identity.Enrolment, error) {
			t.Errorf("%s was let through", body)
			return identity.Enrolment{}, nil
		}).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/renew", strings.NewReader(body)))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), says) {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
	}
}
