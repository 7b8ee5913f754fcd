package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

func TestEpochStatementIsTheCAsAlone(t *testing.T) {
	now := time.Now()
	ca := mustCA(t, clusterID, now)
	v, err := identity.NewVerifier(clusterID, ca.CertPEM())
	must(t, err)
	sign := func(ca *identity.CA, cluster string, epoch uint64) []byte {
		t.Helper()
		b, err := ca.SignEpoch(identity.EpochStatement{Cluster: cluster, Epoch: epoch})
		must(t, err)
		return b
	}
	good := sign(ca, clusterID, 7)
	if epoch, err := v.VerifyEpoch(good); err != nil || epoch != 7 {
		t.Fatalf("epoch %d, %v", epoch, err)
	}
	// A rooted server has a key of its own, and may sign whatever it likes with it.
	text := fmt.Appendf(nil, `{"cluster":%q,"epoch":7}`, clusterID)
	rooted := mustKey(t)
	forged := func(message []byte) []byte {
		b, err := json.Marshal(map[string][]byte{"statement": text, "sig": ed25519.Sign(rooted, message)})
		must(t, err)
		return b
	}
	for name, tc := range map[string]struct {
		statement []byte
		says      string
	}{
		"a server's key":       {forged(append([]byte("moult epoch 1\n"), text...)), "not signed by the cluster's CA"},
		"another CA":           {sign(mustCA(t, clusterID, now), clusterID, 7), "not signed by the cluster's CA"},
		"of another cluster":   {sign(ca, "elsewhere", 7), `of cluster "elsewhere"`},
		"bytes after its end":  {append(bytes.Clone(good), '{'), "read the epoch statement"},
		"very long":            {append(bytes.Repeat([]byte(" "), 4<<10), good...), "at most"},
		"empty":                {nil, "read the epoch statement"},
		"no signature":         {[]byte(`{}`), "not signed"},
		"a server certificate": {der(mustIssue(t, ca, server(hostID), rooted, now, time.Hour)), "read the epoch statement"},
	} {
		if epoch, err := v.VerifyEpoch(tc.statement); err == nil || epoch != 0 || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: epoch %d, %v", name, epoch, err)
		}
	}
	for i := range good {
		altered := bytes.Clone(good)
		altered[i] ^= 1
		if epoch, err := v.VerifyEpoch(altered); err == nil && epoch != 7 { // the frame has more than one spelling
			t.Fatalf("byte %d altered: epoch %d", i, epoch)
		}
	}
	if _, err := (identity.Credentials{}).Verifier().VerifyEpoch(good); err == nil {
		t.Error("a verifier without a CA believes it")
	}
	for _, s := range []identity.EpochStatement{{Cluster: clusterID}, {Epoch: 1}, {Cluster: "a b", Epoch: 1}} {
		if _, err := ca.SignEpoch(s); err == nil {
			t.Errorf("signed %+v", s)
		}
	}
}
