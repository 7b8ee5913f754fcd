package order

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"moult/mesh/identity"
)

// A host's life under replays: 10,000 deliveries of orders that servers did seal, in
// whatever order, the same ones again and again, over restarts, over a second life of
// the host with a new id, and over two restores of the cluster. Each order runs at
// most once, nothing runs that comes before what ran, and nothing of the host's
// earlier life. What runs is what a record of the whole history says, not the fence.
func TestReplaysAndReorderings(t *testing.T) {
	const (
		deliveries = 10_000
		lives      = 3   // enrolments of the host, each with an id of its own
		sealedEach = 100 // orders of each
		window     = 20  // how far ahead of the newest one a delivery may be
	)
	for _, seed := range []uint64{1, 2} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, seed))
			ca := mustCA(t, cluster)
			v := mustVerifier(t, cluster, ca)
			signers := []signer{mustSigner(t, ca, server(cluster), time.Hour), mustSigner(t, ca, server(cluster), time.Hour)}
			id := func(life int) string { return fmt.Sprintf("agent-1-%d", life) }
			type delivery struct {
				life   int
				order  Order
				sealed []byte
			}
			var all []delivery
			statements := map[uint64][]byte{2: mustStatement(t, ca, cluster, 2), 5: mustStatement(t, ca, cluster, 5)}
			for n := range lives * sealedEach {
				o := fenced(fmt.Sprint("job-", n), uint64(10+n))
				switch { // a restored cluster begins with a lower index
				case n >= 2*sealedEach+sealedEach/2:
					o.Epoch, o.Index = 5, uint64(n-2*sealedEach)
				case n >= sealedEach+sealedEach/2:
					o.Epoch, o.Index = 2, uint64(n-sealedEach)
				}
				o.Statement = statements[o.Epoch]
				o.HostID = id(n / sealedEach)
				all = append(all, delivery{n / sealedEach, o, mustSeal(t, o, signers[n%2])})
			}
			path := filepath.Join(t.TempDir(), "fence.json")
			fence, life := mustFence(t, path), 0
			// Open keeps nothing, so what it says of an order in a life it says each time.
			type answer struct {
				order Order
				err   error
			}
			answers := map[[2]int]answer{}
			open := func(at int) (Order, error) {
				known, ok := answers[[2]int{at, life}]
				if !ok || r.IntN(50) == 0 {
					o, err := Open(all[at].sealed, v, id(life), now)
					if ok && fmt.Sprint(err) != fmt.Sprint(known.err) {
						t.Fatalf("opened again: %v, before: %v", err, known.err)
					}
					known = answer{o, err}
					answers[[2]int{at, life}] = known
				}
				return known.order, known.err
			}
			ran := map[string]int{}
			newest, restarts := -1, 0 // position in all of the last one that ran
			for n := range deliveries {
				if life < lives-1 && n == (life+1)*deliveries/lives {
					life++
					fence = mustFence(t, path)
				}
				if r.IntN(20) == 0 {
					fence = mustFence(t, path)
					restarts++
				}
				progress := life*sealedEach + (n-life*deliveries/lives)*sealedEach*lives/deliveries
				at := r.IntN(min(progress+window, len(all)))
				d := all[at]
				opened, err := open(at)
				if d.life != life {
					if !errors.Is(err, ErrOtherHost) {
						t.Fatalf("delivery %d: an order of life %d in life %d: %v", n, d.life, life, err)
					}
					continue
				}
				must(t, err)
				switch err := fence.Accept(opened); {
				case err == nil && at <= newest:
					t.Fatalf("delivery %d: %s runs after %s", n, d.order.JobID, all[newest].order.JobID)
				case err == nil:
					ran[d.order.JobID]++
					newest = at
				case at > newest:
					t.Fatalf("delivery %d: %s is refused, and the last was number %d: %v", n, d.order.JobID, newest, err)
				case at == newest && !errors.Is(err, ErrRepeated) || at < newest && !errors.Is(err, ErrStale):
					t.Fatalf("delivery %d: %v", n, err)
				}
			}
			for job, times := range ran {
				if times != 1 {
					t.Errorf("%s ran %d times", job, times)
				}
			}
			if len(ran) < 3*lives || restarts < 100 || all[newest].order.Epoch != 5 {
				t.Errorf("%d orders ran, %d restarts, the last of epoch %d: this tests little", len(ran), restarts, all[newest].order.Epoch)
			}
			t.Logf("%d deliveries, %d restarts: %d of %d orders ran", deliveries, restarts, len(ran), len(all))
		})
	}
}

// What a server signs that was removed is no order any more, from the moment on at
// which the host follows the deny-list, and after a restart: not by its own
// certificate, nor by one that it gives its key under another server's id.
func TestOrderOfADeniedServer(t *testing.T) {
	ca, err := identity.NewCA(cluster, time.Now())
	must(t, err)
	store, err := identity.OpenStore(filepath.Join(t.TempDir(), "identity"))
	must(t, err)
	hostID, key, err := store.HostKey()
	must(t, err)
	self := identity.Identity{Cluster: cluster, HostID: hostID, Name: "a", Role: identity.RoleAgent}
	cert, err := ca.Issue(self, publicKeyOf(key), time.Now(), time.Hour)
	must(t, err)
	must(t, store.Save(identity.Enrolment{
		Identity: self, CertPEM: cert, CAPEM: ca.CertPEM(), Segment: "default", GossipKeys: [][]byte{make([]byte, 32)},
	}))
	creds, err := store.Load()
	must(t, err)
	named := func(id string) identity.Identity {
		return identity.Identity{Cluster: cluster, HostID: id, Name: id, Role: identity.RoleServer}
	}
	issued := func(s signer, id string) signer {
		text, err := ca.Issue(named(id), publicKeyOf(s.key), time.Now(), time.Hour)
		must(t, err)
		return signer{s.key, derOf(text)}
	}
	newKey := func() signer {
		key, err := identity.NewKey()
		must(t, err)
		return signer{key: key}
	}
	removed, stays := issued(newKey(), "server-9"), issued(newKey(), "server-1")
	o := goodOrder()
	o.HostID, o.Expires = hostID, time.Now().Add(time.Minute)
	orders := map[string]struct {
		sealed []byte
		denied bool
	}{
		"the removed server's":                  {mustSeal(t, o, removed), true},
		"its key under another server's id":     {mustSeal(t, o, issued(removed, "server-1")), true},
		"its id with another key":               {mustSeal(t, o, issued(newKey(), "server-9")), true},
		"one that it sealed before, kept since": {mustSeal(t, o, removed), true},
		"another server's":                      {mustSeal(t, o, stays), false},
	}
	verifier := creds.Verifier() // made before the removal, as an agent's is
	for name, tc := range orders {
		if _, err := Open(tc.sealed, verifier, hostID, time.Now()); err != nil {
			t.Errorf("before the removal, %s: %v", name, err)
		}
	}
	list, err := ca.SignDenyList(identity.DenyList{Cluster: cluster, Number: 1, Hosts: []identity.DeniedHost{{HostID: "server-9", Key: publicKeyOf(removed.key)}}})
	must(t, err)
	_, err = creds.Denials.Take(verifier, list)
	must(t, err)
	again, err := identity.OpenStore(store.Dir())
	must(t, err)
	restarted, err := again.Load()
	must(t, err)
	for when, v := range map[string]*identity.Verifier{"at once": verifier, "after a restart": restarted.Verifier()} {
		for name, tc := range orders {
			if _, err := Open(tc.sealed, v, hostID, time.Now()); errors.Is(err, identity.ErrDenied) != tc.denied || tc.denied && !errors.Is(err, ErrUntrusted) || !tc.denied && err != nil {
				t.Errorf("%s, %s: %v", when, name, err)
			}
		}
	}
}
