package artifact

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// within runs f with new sockets belonging to a host.
func (s *shaped) within(i int, f func() error) error {
	runtime.LockOSThread()
	// Unlocked only when the thread is where it was: else it ends with its goroutine.
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + s.ns(i))
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return back
	}
	runtime.UnlockOSThread()
	return err
}

// node is a host of the benchmark: the real node port, server and fetch, and
// nothing else. All are in one process, as two cores have to do for all of them.
type node struct {
	t      *testing.T
	creds  identity.Credentials
	store  *Store
	port   *nodeport.Port
	served *Server
	puller atomic.Pointer[Puller] // of a relay
	client *http.Client
	ctx    context.Context
	stop   context.CancelFunc
}

func (s *shaped) startNode(i int, creds identity.Credentials) *node {
	s.t.Helper()
	n := &node{t: s.t, creds: creds}
	n.ctx, n.stop = context.WithCancel(s.t.Context())
	var err error
	n.store, err = OpenStore(filepath.Join(s.hostDir(i), "artifacts"), "", "")
	must(s.t, err)
	must(s.t, s.within(i, func() (err error) {
		n.port, err = nodeport.Listen(s.addr(i), func() (identity.Credentials, bool) { return creds, true }, nil, slog.New(slog.DiscardHandler))
		return err
	}))
	n.served = Handler(n.store, DefaultLimits)
	api := http.NewServeMux()
	api.Handle(pathPrefix, n.served)
	api.HandleFunc("POST "+pathPrefix+"{digest}"+pullSuffix, func(w http.ResponseWriter, r *http.Request) {
		if p := n.puller.Load(); p != nil {
			p.ServeHTTP(w, r)
		}
	})
	n.port.ServeHTTP(nodeport.Handlers{Peer: api})
	// As nodeport.Client, but from the host's network.
	n.client = &http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			var conn net.Conn
			err := s.within(i, func() (err error) {
				conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
				return err
			})
			if err != nil {
				return nil, err
			}
			secure := tls.Client(conn, creds.ClientTLS(identity.ALPNHTTP, nil))
			if err := secure.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, err
			}
			return secure, nil
		},
	}}
	return n
}

// fetch gets the artifact and returns when it was here.
func (n *node) fetch(req FetchRequest) (time.Time, []Source, error) {
	req.Store, req.HTTP = n.store, n.client
	sources, err := Fetch(n.ctx, req)
	return time.Now(), sources, err
}

// kill ends all that the host does, as the end of its process would: connections
// break, new ones are refused.
func (n *node) kill() {
	n.stop()
	if p := n.puller.Load(); p != nil {
		p.Close()
	}
	over, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	_ = n.port.Close(over) // it says that it had to cut connections off
	n.client.CloseIdleConnections()
}

func (n *node) close() {
	n.kill()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = n.port.Close(ctx)
}
