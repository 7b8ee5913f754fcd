//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"moult/consensus/registers"
)

// TestE2EReadsAreLinearizable has clients set and read labels of hosts over the
// API of all servers, with the header Moult-Read: latest, while the leader is
// stopped and goes on, hands over, and is killed. MOULT_SEED repeats its choices.
func TestE2EReadsAreLinearizable(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MOULT_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("MOULT_SEED is %q; give a number", text)
		}
		seed = n
	}
	t.Logf("seed %d; repeat it with MOULT_SEED", seed)
	rounds := 1
	if longForm() {
		rounds = 10
	}
	c := startCluster(t, 3, 2)
	r := &registerClients{c: c, h: registers.New(), ended: make(chan struct{})}
	for _, h := range c.hosts() {
		r.hosts = append(r.hosts, h.ID)
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	for client := range 6 {
		own := rand.New(rand.NewPCG(seed, uint64(client)+1))
		r.running.Go(func() { r.run(client, own) })
	}
	defer r.end()
	for range rounds {
		for _, fault := range rng.Perm(3) {
			r.progress()
			switch leader := c.leader(); fault {
			case 0:
				pid := c.pid(leader)
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2*time.Second + time.Duration(rng.Int64N(int64(time.Second)))) // how long it is stopped is the fault
				if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			case 1:
				_ = c.try(http.MethodPost, "/api/servers/transfer-leadership", nil, nil) // to whom it can
			case 2:
				restart := c.killForRestart(leader)
				r.progress()
				restart()
			}
		}
	}
	r.progress()
	r.end()
	calls, unknown := r.h.Count()
	t.Logf("%d calls, of %d writes the outcome is unknown", calls, unknown)
	if err := r.h.Check(5*time.Minute, nil); err != nil {
		t.Error(err)
	}
}

// registerClients write to and read from labels, one a host.
type registerClients struct {
	c     *testCluster
	h     *registers.History
	hosts []string // ids

	ended    chan struct{}
	once     sync.Once
	running  sync.WaitGroup
	answered atomic.Int64
}

func (r *registerClients) end() {
	r.once.Do(func() { close(r.ended) })
	r.running.Wait()
}

// progress waits until calls are answered again.
func (r *registerClients) progress() {
	r.c.t.Helper()
	had := r.answered.Load()
	r.c.await(time.Minute, "calls to be answered", func() error {
		if n := r.answered.Load() - had; n < 40 {
			return fmt.Errorf("%d were", n)
		}
		return nil
	})
}

func (r *registerClients) run(client int, rng *rand.Rand) {
	for i := 0; ; i++ {
		select {
		case <-r.ended:
			return
		case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
		}
		addr, host := r.c.client.addrs[rng.IntN(len(r.c.client.addrs))], r.hosts[rng.IntN(len(r.hosts))]
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		var err error
		if rng.IntN(3) == 0 {
			value := fmt.Sprintf("c%d-%d", client, i)
			err = r.h.Write(client, host, value, func() error {
				_, err := r.call(ctx, http.MethodPut, addr, "/api/hosts/"+host+"/labels", map[string]any{"labels": map[string]string{"register": value}})
				if err != nil && !errors.Is(err, syscall.ECONNREFUSED) { // 503 leaves it open, too
					err = fmt.Errorf("%w: %w", registers.ErrUnknown, err)
				}
				return err
			})
		} else {
			err = r.h.Read(client, host, func() (string, error) {
				h, err := r.call(ctx, http.MethodGet, addr, "/api/hosts/"+host, nil)
				return h.Labels["register"], err
			})
		}
		cancel()
		if err == nil {
			r.answered.Add(1)
		}
	}
}

func (r *registerClients) call(ctx context.Context, method, addr, path string, in any) (h apiHost, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return h, err
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	req, err := http.NewRequestWithContext(ctx, method, addr+path, bytes.NewReader(body))
	if err != nil {
		return h, err
	}
	req.Header.Set("Authorization", "Bearer "+r.c.client.token)
	req.Header.Set("Moult-Read", "latest")
	resp, err := r.c.client.http.Do(req)
	if err != nil {
		return h, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return h, fmt.Errorf("%s answers %s", path, resp.Status)
	}
	return h, json.NewDecoder(resp.Body).Decode(&h)
}
