package order

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

func mustStatement(t testing.TB, ca *identity.CA, id string, epoch uint64) []byte {
	t.Helper()
	b, err := ca.SignEpoch(identity.EpochStatement{Cluster: id, Epoch: epoch})
	must(t, err)
	return b
}

// inEpoch is an order as a restored cluster makes it.
func inEpoch(t testing.TB, ca *identity.CA, epoch uint64, job string, index uint64) Order {
	t.Helper()
	o := fenced(job, index)
	if epoch > 0 {
		o.Epoch, o.Statement = epoch, mustStatement(t, ca, cluster, epoch)
	}
	return o
}

// A host that saw a high index takes a restored cluster's lower one, by the
// statement of the CA, and from then on nothing of the lost timeline: whether the
// order is replayed or new, and the agent restarted in between or not.
func TestLostTimelineIsFencedOffForEver(t *testing.T) {
	ca := mustCA(t, cluster)
	s, v := mustSigner(t, ca, server(cluster), time.Hour), mustVerifier(t, cluster, ca)
	path := filepath.Join(t.TempDir(), "fence.json")
	deliver := func(sealed []byte) error {
		o, err := Open(sealed, v, host, now)
		if err != nil {
			return err
		}
		return mustFence(t, path).Accept(o) // each delivery after a restart
	}
	lost := mustSeal(t, inEpoch(t, ca, 0, "job-9", 900), s)
	must(t, deliver(lost))
	restored := mustSeal(t, inEpoch(t, ca, 5, "job-4", 40), s)
	must(t, deliver(restored))
	for name, tc := range map[string]struct {
		order Order
		want  error
	}{
		"a replay of the lost timeline":    {inEpoch(t, ca, 0, "job-9", 900), ErrStale},
		"a new order of the lost timeline": {inEpoch(t, ca, 0, "job-10", 1<<60), ErrStale},
		"an epoch between the two":         {inEpoch(t, ca, 4, "job-10", 1<<60), ErrStale},
		"a replay of this epoch":           {inEpoch(t, ca, 5, "job-4", 40), ErrRepeated},
		"an earlier index of this epoch":   {inEpoch(t, ca, 5, "job-3", 39), ErrStale},
		"the same index of this epoch":     {inEpoch(t, ca, 5, "job-3", 40), ErrStale},
	} {
		if err := deliver(mustSeal(t, tc.order, s)); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, deliver(mustSeal(t, inEpoch(t, ca, 5, "job-5", 41), s)))
	must(t, deliver(mustSeal(t, inEpoch(t, ca, 6, "job-6", 1), s)))
	if err := deliver(restored); !errors.Is(err, ErrStale) {
		t.Errorf("the first restore after the second one: %v", err)
	}
}

// A rooted server, which has a certificate and not the CA's key, cannot raise the
// epoch, nor use a statement for another one than it says.
func TestEpochTakesTheCAsStatement(t *testing.T) {
	ca := mustCA(t, cluster)
	rooted, v := mustSigner(t, ca, server(cluster), time.Hour), mustVerifier(t, cluster, ca)
	text, err := json.Marshal(identity.EpochStatement{Cluster: cluster, Epoch: 5})
	must(t, err)
	own, err := json.Marshal(map[string][]byte{"statement": text, "sig": ed25519.Sign(rooted.key, append([]byte("moult epoch 1\n"), text...))})
	must(t, err)
	for name, spoil := range map[string]func(*Order){
		"signed by the server":         func(o *Order) { o.Statement = own },
		"signed by another CA":         func(o *Order) { o.Statement = mustStatement(t, mustCA(t, cluster), cluster, 5) },
		"a lower statement":            func(o *Order) { o.Statement = mustStatement(t, ca, cluster, 4) },
		"a higher statement":           func(o *Order) { o.Statement = mustStatement(t, ca, cluster, 6) },
		"another cluster's statement":  func(o *Order) { o.Statement = mustStatement(t, ca, "elsewhere", 5) },
		"an altered statement":         func(o *Order) { o.Statement = bytes.Replace(o.Statement, []byte("sig"), []byte("gis"), 1) },
		"an order's own signature":     func(o *Order) { o.Statement = mustSeal(t, goodOrder(), rooted) },
		"the certificate of a server":  func(o *Order) { o.Statement = rooted.cert },
		"an epoch that is not the one": func(o *Order) { o.Epoch = 1 << 62 },
	} {
		o := inEpoch(t, ca, 5, "job-1", 7)
		spoil(&o)
		if _, err := Open(forge(t, o, rooted), v, host, now); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, spoil := range map[string]func(*Order){
		"an epoch without a statement": func(o *Order) { o.Statement = nil },
		"a statement without an epoch": func(o *Order) { o.Epoch = 0 },
	} {
		o := inEpoch(t, ca, 5, "job-1", 7)
		spoil(&o)
		if _, err := Open(forge(t, o, rooted), v, host, now); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Seal(o, rooted.key, rooted.cert); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: sealed, %v", name, err)
		}
	}
}

// What hosts have on disk from before there were epochs counts as epoch 0, and
// what is written in epoch 0 is byte for byte what such a program writes.
func TestFenceOfBeforeEpochs(t *testing.T) {
	const before = `{"cluster":"cluster-1","index":7,"job_id":"job-1","sum":"578688de842802cba33dfc808886d6b81fcb062a8a9cde2a6b582a6e64d915c8"}`
	path := filepath.Join(t.TempDir(), "fence.json")
	must(t, mustFence(t, path).Accept(fenced("job-1", 7)))
	written, err := os.ReadFile(path)
	must(t, err)
	if string(written) != before {
		t.Errorf("written: %s", written)
	}
	must(t, os.WriteFile(path, []byte(before), 0o600))
	f := mustFence(t, path)
	if err := f.Accept(fenced("job-0", 7)); !errors.Is(err, ErrStale) {
		t.Errorf("the same index: %v", err)
	}
	ca := mustCA(t, cluster)
	must(t, f.Accept(inEpoch(t, ca, 1, "job-2", 3)))
	// Such a program reads the file of a later one: its sum is over the same three fields.
	var m mark
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, json.Unmarshal(text, &m))
	if m.Epoch != 1 || m.Index != 3 || m.Sum != m.sum() {
		t.Errorf("the file says %+v", m)
	}
	// The epoch is as safe from damage as the rest.
	for _, damaged := range [][]byte{
		bytes.Replace(text, []byte(`"epoch":1`), []byte(`"epoch":2`), 1),
		bytes.Replace(text, []byte(`"epoch":1,`), nil, 1),
		[]byte(strings.Replace(string(text), m.EpochSum, "", 1)),
	} {
		must(t, os.WriteFile(path, damaged, 0o600))
		if _, err := OpenFence(path); !errors.Is(err, ErrFenceDamaged) {
			t.Errorf("%s: %v", damaged, err)
		}
	}
}
