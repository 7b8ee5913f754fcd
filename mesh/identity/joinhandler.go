package identity

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"unicode"

	"github.com/google/uuid"
)

// JoinHandler serves the join protocol. enroll gets a well-formed request whose
// signature proves the public key, and the hash of the token's secret (the
// secret itself is cleared); an address in it whose host is unspecified
// (0.0.0.0, ::, or empty) has become the one that the caller is seen from.
//
// enroll decides whether the token is good, uses it up, and issues the
// certificate. It must give the same host again when the same host asks twice
// with the same token and key: the first answer may have been lost. Its
// *CodedError reaches the new host as it is; of any other error the new host
// learns nothing, so enroll logs those itself.
func JoinHandler(enroll func(ctx context.Context, req JoinRequest, secretHash string) (Enrolment, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+joinPath, func(w http.ResponseWriter, r *http.Request) {
		e, err := serveJoin(w, r, enroll)
		if err != nil {
			writeRefusal(w, err)
			return
		}
		writeEnrolment(w, e)
	})
	return mux
}

func writeEnrolment(w http.ResponseWriter, e Enrolment) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(e) // the caller is gone if this errs; it asks again
}

func serveJoin(w http.ResponseWriter, r *http.Request, enroll func(context.Context, JoinRequest, string) (Enrolment, error)) (Enrolment, error) {
	var req JoinRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJoinBody)).Decode(&req); err != nil {
		return Enrolment{}, badJoin("the join request does not parse: %v", err)
	}
	if err := req.validate(); err != nil {
		return Enrolment{}, err
	}
	secretHash := hashSecret(req.Secret)
	req.Secret, req.Signature = "", nil
	addrs := []*string{&req.GossipAddr, &req.PeerAddr, &req.HTTPAddr}
	for i := range req.Also {
		addrs = append(addrs, &req.Also[i].GossipAddr)
	}
	for _, addr := range addrs {
		*addr = seenFrom(*addr, r.RemoteAddr)
	}
	return enroll(r.Context(), req, secretHash)
}

func badJoin(format string, args ...any) *CodedError {
	return &CodedError{Code: "bad_request", Message: fmt.Sprintf(format, args...), Status: http.StatusBadRequest}
}

func (r JoinRequest) validate() error {
	texts := []textField{
		{"secret", r.Secret, false},
		{"host_id", r.HostID, false},
		{"role", string(r.Role), true},
		{"name", r.Name, false},
		{"os", r.OS, false},
		{"arch", r.Arch, false},
		{"version", r.Version, true},
		{"gossip_addr", r.GossipAddr, false},
		{"peer_addr", r.PeerAddr, false},
		{"http_addr", r.HTTPAddr, true},
	}
	if err := checkTexts(texts); err != nil {
		return err
	}
	if err := r.validateAlso(); err != nil {
		return err
	}
	// The ID becomes part of the certificate's URI: one spelling only.
	if id, err := uuid.Parse(r.HostID); err != nil || id.String() != r.HostID {
		return badJoin("host_id: %q is not a UUID in lower case", r.HostID)
	}
	if len(r.PublicKey) != ed25519.PublicKeySize {
		return badJoin("public_key: it has %d bytes, not %d", len(r.PublicKey), ed25519.PublicKeySize)
	}
	if !ed25519.Verify(r.PublicKey, r.signed(), r.Signature) {
		return badJoin("signature: it does not prove the public key; join with the host's own key")
	}
	return nil
}

func (r JoinRequest) validateAlso() error {
	if len(r.Also) > maxAlso {
		return badJoin("also: it has %d segments; give --also-segment at most %d times", len(r.Also), maxAlso)
	}
	for _, a := range r.Also {
		if err := checkTexts([]textField{{"also.segment", a.Segment, false}, {"also.gossip_addr", a.GossipAddr, false}}); err != nil {
			return err
		}
	}
	return nil
}

type textField struct {
	field, value string
	optional     bool
}

func checkTexts(texts []textField) error {
	for _, t := range texts {
		if t.value == "" && t.optional {
			continue
		}
		if t.value == "" || len(t.value) > maxJoinField || strings.ContainsFunc(t.value, unprintable) {
			return badJoin("%s: give 1 to %d printable bytes", t.field, maxJoinField)
		}
		if strings.HasSuffix(t.field, "_addr") {
			if err := checkAddress(t.value); err != nil {
				return badJoin("%s: %q %v", t.field, t.value, err)
			}
		}
	}
	return nil
}

// checkAddress refuses what nobody can dial. The host may be missing: seenFrom
// fills it in.
func checkAddress(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New("is not HOST:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("has a port that is not a number from 1 to 65535")
	}
	return nil
}

func unprintable(c rune) bool { return !unicode.IsPrint(c) }

func writeRefusal(w http.ResponseWriter, err error) {
	var coded *CodedError
	if !errors.As(err, &coded) {
		coded = &CodedError{Code: "internal", Message: "the server could not let this host in; try again, or join through another server"}
	}
	status := coded.Status
	if status < 400 || status > 599 {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(joinRefusal{Error: coded}) // the caller is gone if this errs
}

// seenFrom fills in the caller's own IP for an address that names no host.
func seenFrom(addr, remoteAddr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return addr
	}
	remote, _, err := net.SplitHostPort(remoteAddr)
	if err != nil {
		return addr
	}
	return net.JoinHostPort(remote, port)
}
