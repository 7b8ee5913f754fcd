package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"moult/consensus/fleet"
	"moult/consensus/registers"
)

// seedOf returns the seed of a random test, which MOULT_SEED sets, and says it.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MOULT_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("MOULT_SEED is %q; give a number", text)
		}
		seed = n
	}
	t.Logf("seed %d; repeat it with MOULT_SEED", seed)
	return seed
}

// TestReadsAfterCatchUpAreLinearizable has clients write and read through all
// servers while leaders are cut off, killed and moved. A read is a CatchUp and a
// look at the local state.
func TestReadsAfterCatchUpAreLinearizable(t *testing.T) {
	runs := 1
	if os.Getenv("MOULT_LONG") != "" {
		runs = 15
	}
	for range runs {
		t.Run("", func(t *testing.T) {
			h := historyUnderFaults(t, func(ctx context.Context, s *server) error { return s.CatchUp(ctx) })
			mustBeLinearizable(t, h)
		})
	}
}

// TestLocalReadsAreNotLinearizable shows that the test above can fail: without
// CatchUp a server that is cut off shows what is out of date.
func TestLocalReadsAreNotLinearizable(t *testing.T) {
	h := historyUnderFaults(t, func(context.Context, *server) error { return nil })
	err := h.Check(checkLimit, nil)
	if err == nil {
		t.Error("reads of what each server has are linearizable; nothing was tested")
	}
	t.Log(err)
}

const checkLimit = 2 * time.Minute

func mustBeLinearizable(t *testing.T, h *registers.History) {
	t.Helper()
	picture, err := os.CreateTemp(t.TempDir(), "history-*.html")
	if err != nil {
		t.Fatal(err)
	}
	defer picture.Close()
	if err := h.Check(checkLimit, picture); err != nil {
		t.Errorf("%v; keep the picture with MOULT_PICTURE=FILE", err)
		if to := os.Getenv("MOULT_PICTURE"); to != "" {
			if html, err := os.ReadFile(picture.Name()); err != nil || os.WriteFile(to, html, 0o600) != nil {
				t.Errorf("the picture is lost: %v", err)
			}
		}
	}
}

// historyUnderFaults records what clients write to passwords of three users and
// read from them, before each read doing what is given.
func historyUnderFaults(t *testing.T, before func(context.Context, *server) error) *registers.History {
	rng := rand.New(rand.NewPCG(seedOf(t), 1))
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.Snapshots = Snapshots{Interval: 50 * time.Millisecond, Threshold: 40, Trailing: 8}
	})
	names := []string{"r1", "r2", "r3"}
	h := registers.New()
	for _, name := range names {
		u := user(name)
		u.User.PasswordHash = "first"
		mustPropose(t, c.AwaitLeader(), u)
		if err := h.Write(-1, name, "first", func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	c.AwaitEqual()
	var (
		tasks   sync.WaitGroup
		ended   = make(chan struct{})
		done    atomic.Int64 // calls that were answered
		leaders = map[*server]bool{}
	)
	end := sync.OnceFunc(func() { close(ended); tasks.Wait() })
	defer end()
	for client := range 6 {
		rng := rand.New(rand.NewPCG(rng.Uint64(), uint64(client)))
		tasks.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-ended:
					return
				case <-time.After(time.Duration(rng.IntN(10)) * time.Millisecond):
				}
				all := c.all()
				if len(all) == 0 {
					return // the test has failed
				}
				s, name := all[rng.IntN(len(all))], names[rng.IntN(len(names))]
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				var err error
				if rng.IntN(3) == 0 {
					err = writePassword(ctx, h, s, client, name, fmt.Sprintf("c%d-%d", client, i))
				} else {
					err = h.Read(client, name, func() (string, error) {
						if err := before(ctx, s); err != nil {
							return "", err
						}
						u, _ := s.View().UserByName(name)
						return u.PasswordHash, nil
					})
				}
				cancel()
				if err == nil {
					done.Add(1)
				}
			}
		})
	}
	progress := func() {
		t.Helper()
		had := done.Load()
		awaitSoon(t, "calls are answered", func() bool { return done.Load() >= had+40 })
	}
	for _, fault := range rng.Perm(4) {
		progress()
		leader := c.AwaitLeader()
		switch fault {
		case 0: // the leader, cut off
			c.Cut(leader)
			awaitSoon(t, "another leader", func() bool { return c.AwaitLeader() != leader })
			progress()
			c.Heal(leader)
		case 1:
			follower := c.Followers(leader)[rng.IntN(2)]
			c.Cut(follower)
			progress()
			c.Heal(follower)
		case 2:
			c.Kill(leader)
			progress()
			c.open(leader.id, leader.addr)
		case 3:
			_ = leader.TransferLeadership(c.within(10 * time.Second)) // to whom it can
		}
		leaders[leader] = true
	}
	progress()
	end()
	c.AwaitEqual()
	calls, unknown := h.Count()
	t.Logf("%d calls, of %d writes the outcome is unknown, leaders %d", calls, unknown, len(leaders))
	return h
}

// writePassword writes and says of the outcome what Propose says.
func writePassword(ctx context.Context, h *registers.History, s *server, client int, name, value string) error {
	return h.Write(client, name, value, func() error {
		result, err := s.Propose(ctx, "user:test", fleet.UserChanged{UserID: "id-" + name, PasswordHash: value})
		switch {
		case result.Index > 0 && result.Err == nil: // though this server may not have followed in time
			return nil
		case err != nil && !errors.Is(err, ErrNoLeader):
			return fmt.Errorf("%w: %w", registers.ErrUnknown, err)
		}
		return err
	})
}

// Calls that wait at the same time share a Barrier, but never one that began
// before they came.
func TestSharedCallBeginsAfterWhoWaits(t *testing.T) {
	var s shared
	var runs atomic.Int64
	release := make(chan struct{})
	call := func() error { runs.Add(1); <-release; return nil }
	var waiting sync.WaitGroup
	wait := func() {
		waiting.Go(func() {
			if err := s.wait(context.Background(), call); err != nil {
				t.Error(err)
			}
		})
	}
	wait()
	awaitSoon(t, "the first runs", func() bool { return runs.Load() == 1 })
	for range 5 {
		wait()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.wait(ctx, call); !errors.Is(err, context.Canceled) {
		t.Errorf("who gives up gets %v", err)
	}
	release <- struct{}{}
	awaitSoon(t, "the second runs", func() bool { return runs.Load() == 2 })
	close(release)
	waiting.Wait()
	if n := runs.Load(); n > 3 { // a third for who came while the second began
		t.Errorf("six calls took %d runs", n)
	}
}

func TestCatchUpWithoutALeaderSaysSo(t *testing.T) {
	c := startCluster(t, 3, nil)
	leader := c.AwaitLeader()
	for _, s := range c.Followers(leader) {
		c.Cut(s)
	}
	if err := leader.CatchUp(c.within(300 * time.Millisecond)); !errors.Is(err, ErrNoLeader) {
		t.Errorf("CatchUp of a leader without followers: %v", err)
	}
}

// A leader that was deposed and has not noticed must not say how far a read has to
// go: it does not know.
func TestDeposedLeaderNamesNoIndexToReadAt(t *testing.T) {
	c := startCluster(t, 3, nil)
	old := c.AwaitLeader()
	c.Cut(old)
	awaitSoon(t, "another leader", func() bool { return c.AwaitLeader() != old })
	mustPropose(t, c.AwaitLeader(), user("ann"))
	if resp := old.serveReadIndex(c.within(300 * time.Millisecond)); !resp.NotLeader {
		t.Errorf("the deposed leader answers %+v", resp)
	}
}
