package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// An epoch statement says that a cluster goes on in a new epoch: it was restored
// from a backup, or recovered without a majority, and what was decided in earlier
// epochs after that point is void. It is
//
//	{"statement": base64 of the EpochStatement's JSON, "sig": ed25519}
//
// with the signature of the CA's key over "moult epoch 1\n" and the statement's
// JSON, byte for byte. A server's certificate is not enough to make one.

// epochDomain keeps a signature over a statement from meaning anything else.
const epochDomain = "moult epoch 1\n"

// maxEpochStatement is more bytes than a signed statement ever has.
const maxEpochStatement = 4 << 10

// EpochStatement is what the CA's key signs.
type EpochStatement struct {
	Cluster string `json:"cluster"`
	Epoch   uint64 `json:"epoch"` // at least 1; clusters begin in epoch 0, without a statement
}

type signedStatement struct {
	Statement []byte `json:"statement"`
	Signature []byte `json:"sig"`
}

// SignEpoch makes the statement with which a cluster enters an epoch.
func (ca *CA) SignEpoch(s EpochStatement) ([]byte, error) {
	if !validID(s.Cluster) || s.Epoch == 0 {
		return nil, fmt.Errorf("sign epoch %d of cluster %q: give a cluster id, and an epoch of at least 1", s.Epoch, s.Cluster)
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return json.Marshal(signedStatement{Statement: text, Signature: ed25519.Sign(ca.key, append([]byte(epochDomain), text...))})
}

// VerifyEpoch returns the epoch that a statement lets the verifier's cluster
// enter. It refuses one that the cluster's CA did not sign. It does not expire: a
// host may hear of an epoch years after it began.
func (v *Verifier) VerifyEpoch(statement []byte) (uint64, error) {
	cas, err := v.cas()
	if err != nil {
		return 0, err
	}
	if len(statement) > maxEpochStatement {
		return 0, fmt.Errorf("the epoch statement is %d bytes; at most %d are read", len(statement), maxEpochStatement)
	}
	var text signedStatement
	if err := decodeOne(statement, &text); err != nil {
		return 0, fmt.Errorf("read the epoch statement: %w", err)
	}
	if !signed(cas.trusted, append([]byte(epochDomain), text.Statement...), text.Signature) {
		return 0, errors.New("the epoch statement is not signed by the cluster's CA")
	}
	var s EpochStatement
	if err := decodeOne(text.Statement, &s); err != nil {
		return 0, fmt.Errorf("read the epoch statement: %w", err)
	}
	if s.Cluster != v.cluster {
		return 0, fmt.Errorf("the epoch statement is of cluster %q, not %s", s.Cluster, v.cluster)
	}
	if s.Epoch == 0 {
		return 0, errors.New("the epoch statement names no epoch")
	}
	return s.Epoch, nil
}

// decodeOne decodes one JSON value with nothing after it.
func decodeOne(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there are bytes after its end")
	}
	return nil
}
