package nodeport

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"moult/mesh/identity"
)

// A check-in comes with who shows itself, the key, and a moment before which its
// handshake did not begin; one that says nothing of its process is refused.
func TestCheckIn(t *testing.T) {
	ca := mustCA(t)
	s1, a1 := credentials(t, ca, identity.RoleServer, "s1"), credentials(t, ca, identity.RoleAgent, "a1")
	type seen struct {
		id    identity.Identity
		began time.Time
		req   identity.CheckInRequest
	}
	got := make(chan seen, 1)
	port, err := Listen("127.0.0.1:0", func() (identity.Credentials, bool) { return s1, true }, nil, slog.New(slog.DiscardHandler))
	must(t, err)
	defer func() { must(t, port.Close(context.Background())) }()
	port.ServeHTTP(Handlers{Peer: http.NotFoundHandler(), Renew: identity.CheckInHandler(http.NotFoundHandler(), func(ctx context.Context, req identity.CheckInRequest) (identity.CheckInAnswer, error) {
		got <- seen{PeerFrom(ctx), HandshakeFrom(ctx), req}
		return identity.CheckInAnswer{Denied: bytes.Repeat([]byte{7}, 225_000)}, nil
	})})
	before := time.Now()
	answer, err := identity.CheckIn(t.Context(), port.Addr().String(), a1, identity.CheckInRequest{Instance: "X1", PeerAddr: "0.0.0.0:7947"})
	must(t, err)
	if len(answer.Denied) != 225_000 { // a full deny-list is as long
		t.Errorf("it hears %d bytes", len(answer.Denied))
	}
	s := <-got
	if s.req.Denied == nil || *s.req.Denied != (identity.DenyListNumber{}) {
		t.Errorf("it says that it follows %v", s.req.Denied)
	}
	if s.id.HostID != "a1" || s.req.Instance != "X1" || s.req.PeerAddr != "127.0.0.1:7947" || s.began.Before(before) || s.began.After(time.Now()) {
		t.Errorf("seen is %+v", s)
	}
	for _, bad := range []identity.CheckInRequest{{}, {Instance: "a b"}, {Instance: "x", PeerAddr: "line\nbreak"}} {
		if _, err := identity.CheckIn(t.Context(), port.Addr().String(), a1, bad); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
