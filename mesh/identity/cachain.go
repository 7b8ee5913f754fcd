package identity

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

const chainPath = "/cas"

// errNoWay says that a chain does not lead from a CA to others.
var errNoWay = errors.New("the server tells of no change of the CA that begins at the one that is trusted here")

// FetchChain asks the server at addr (HOST:PORT of its node port, or of a relay's)
// how the cluster's CA was changed: POST /cas on moult-join. It takes at most 20 s.
// Neither side shows anything that the other could believe, since they may have no CA
// in common by now: what counts are the signatures in the answer, see Trusted.Follow.
func FetchChain(ctx context.Context, addr string) (CAChain, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{ALPNJoin},
		InsecureSkipVerify: true, // the answer is public, and proves itself
	}
	var chain CAChain
	if err := ask(ctx, askClient(cfg), "https://"+addr+chainPath, struct{}{}, &chain); err != nil {
		return CAChain{}, fmt.Errorf("ask %s how the CA was changed: %w", addr, err)
	}
	return chain, nil
}

// ChainHandler serves FetchChain, on moult-join before JoinHandler. The answer is as
// cheap as it is public.
func ChainHandler(next http.Handler, chain func() CAChain) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("POST "+chainPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(chain()) // the caller is gone if this errs; it asks again
	})
	return mux
}

// Hashes returns the sha256 of the CAs that the chain is about, trusted or retired.
func (c CAChain) Hashes() (hashes []string) {
	for _, raw := range c.Successions {
		if o, err := openSuccession(raw); err == nil {
			hashes = append(hashes, o.previous.hash, o.ca.hash)
		}
	}
	return hashes
}

// since returns the sha256 of the CAs that come after the one with this sha256, one
// signed by the other.
func (c CAChain) since(hash string) (after []string, err error) {
	if len(c.Successions) > MaxCAStatements {
		return nil, fmt.Errorf("the change of the CA has %d statements, at most %d are read", len(c.Successions), MaxCAStatements)
	}
	cluster := ""
	for _, raw := range c.Successions {
		o, err := openSuccession(raw)
		if err != nil {
			return nil, err
		}
		if o.previous.hash == hash && (cluster == "" || cluster == o.cluster) {
			hash, cluster = o.ca.hash, o.cluster
			after = append(after, hash)
		}
	}
	if len(after) == 0 {
		return nil, errNoWay
	}
	return after, nil
}
