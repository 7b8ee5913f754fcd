package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const renewPath = "/renew"

// RenewalGrace is how long after its end a certificate may still be renewed, by a
// host that is still enrolled: it was switched off meanwhile. It is good for
// nothing else then.
const RenewalGrace = 90 * 24 * time.Hour

// RenewRequest is what an enrolled host asks with: POST /renew on moult-renew, as
// JSON. Who asks, and for which key, is what its certificate says.
type RenewRequest struct {
	Also []SegmentAddr `json:"also"` // all segments that the host is in besides its home
	// TakesDenied is JoinRequest's; set by Renew.
	TakesDenied bool `json:"takes_denied,omitempty"`
}

func (r RenewRequest) validate() error { return JoinRequest{Also: r.Also}.validateAlso() }

// Renew asks the server at addr (HOST:PORT of its node port, or of a relay's) for
// a fresh certificate of the same identity and key, and for what else joining
// gave, as it is now. It takes at most 20 s and changes nothing here: see
// Current. A *CodedError is a server's refusal.
func Renew(ctx context.Context, addr string, c Credentials, req RenewRequest) (Enrolment, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	req.TakesDenied = true
	var e Enrolment
	err := ask(ctx, askClient(c.ClientTLS(ALPNRenew, serversOnly)), "https://"+addr+renewPath, req, &e)
	if err != nil {
		return Enrolment{}, fmt.Errorf("renew at %s: %w", addr, err)
	}
	return e, nil
}

// serversOnly refuses whoever is not a server. A relay answers for itself when it
// finds no way to one.
func serversOnly(id Identity) error {
	if id.Role != RoleServer {
		return fmt.Errorf("%s is not a server, and passes on to none now; look at its log, or start a relay or a server that can be reached from there", id)
	}
	return nil
}

// RenewHandler serves the renewal protocol. renew decides whether the host that
// asks is still enrolled, and issues the certificate; its *CodedError reaches the
// host as it is, of any other error the host learns nothing.
func RenewHandler(renew func(ctx context.Context, req RenewRequest) (Enrolment, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+renewPath, func(w http.ResponseWriter, r *http.Request) {
		var req RenewRequest
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJoinBody)).Decode(&req)
		if err != nil {
			writeRefusal(w, badJoin("the request does not parse: %v", err))
			return
		}
		if err := req.validate(); err != nil {
			writeRefusal(w, err)
			return
		}
		for i := range req.Also {
			req.Also[i].GossipAddr = seenFrom(req.Also[i].GossipAddr, r.RemoteAddr)
		}
		e, err := renew(r.Context(), req)
		if err != nil {
			writeRefusal(w, err)
			return
		}
		writeEnrolment(w, e)
	})
	return mux
}

// Current holds a host's credentials as of now. Whoever shows a certificate asks
// for them each time, so that a renewal takes effect without a restart. Its
// methods are safe for concurrent use.
type Current struct {
	store *Store
	creds atomic.Pointer[Credentials]
	mu    sync.Mutex // orders Take
}

// NewCurrent returns the holder of credentials that were loaded from the store.
func NewCurrent(s *Store, c Credentials) *Current {
	cur := &Current{store: s}
	cur.creds.Store(&c)
	return cur
}

// Get returns the credentials.
func (c *Current) Get() Credentials { return *c.creds.Load() }

// Take keeps what a renewal gave, on the disk first, and returns the credentials
// from now on. It refuses what is of another host, cluster, role or CA, and
// leaves all as it was.
func (c *Current) Take(e Enrolment) (Credentials, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.Get()
	have, err := CAHash(old.CAPEM)
	if err != nil {
		return old, err
	}
	if hash, err := CAHash(e.CAPEM); err != nil || hash != have {
		return old, errors.New("the server answered with another CA than this host's; update that server")
	}
	if e.HostID != old.HostID || e.Cluster != old.Cluster || e.Role != old.Role {
		return old, fmt.Errorf("the server answered for %s, this host is %s", e.Identity, old.Identity)
	}
	if err := c.store.Save(e); err != nil {
		return old, err
	}
	fresh, err := c.store.Load()
	if err != nil {
		return old, err
	}
	c.creds.Store(&fresh)
	return fresh, nil
}

// CertDER returns the certificate as it goes into messages; nil when it is
// damaged, which Load refuses.
func (c Credentials) CertDER() []byte {
	cert, err := parseCertificate(c.CertPEM)
	if err != nil {
		return nil
	}
	return cert.Raw
}

// NotYetValid tells whether the certificate holds from later than now on: it was
// issued by a clock that ran ahead by more than what is allowed for.
func (c Credentials) NotYetValid(now time.Time) bool {
	issued, _, err := c.Validity()
	return err == nil && now.Before(issued.Add(-clockSkew))
}

// Validity returns when the certificate was issued and when it ends.
func (c Credentials) Validity() (issued, ends time.Time, err error) {
	cert, err := parseCertificate(c.CertPEM)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	return cert.NotBefore.Add(clockSkew), cert.NotAfter, nil
}
