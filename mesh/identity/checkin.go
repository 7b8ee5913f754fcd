package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

const checkInPath = "/check-in"

// maxInstance bounds the name of an instance, in bytes.
const maxInstance = 64

// CheckInRequest is how a running host shows itself to a server: POST /check-in on
// moult-renew, as JSON. The TLS handshake proves that the host's key was at work at
// that moment, through relays too.
type CheckInRequest struct {
	// Instance names the process: drawn at random when it starts, and never again.
	// So two machines with one key have two.
	Instance string `json:"instance"`
	PeerAddr string `json:"peer_addr"` // HOST:PORT of the node port, for people
}

// CheckIn shows this host to the server at addr (HOST:PORT of its node port, or of
// a relay's). It takes at most 20 s. A *CodedError is a server's refusal.
func CheckIn(ctx context.Context, addr string, c Credentials, req CheckInRequest) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var answer struct{}
	if err := ask(ctx, askClient(c.ClientTLS(ALPNRenew, serversOnly)), "https://"+addr+checkInPath, req, &answer); err != nil {
		return fmt.Errorf("check in at %s: %w", addr, err)
	}
	return nil
}

// CheckInHandler serves check-ins, on moult-renew beside RenewHandler. seen gets
// those that are well-formed; its *CodedError reaches the host as it is.
func CheckInHandler(next http.Handler, seen func(ctx context.Context, req CheckInRequest) error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("POST "+checkInPath, func(w http.ResponseWriter, r *http.Request) {
		var req CheckInRequest
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxJoinBody)).Decode(&req)
		switch {
		case err != nil:
			err = badJoin("the request does not parse: %v", err)
		case !validID(req.Instance) || len(req.Instance) > maxInstance:
			err = badJoin("instance: give 1 to %d of a-z A-Z 0-9 . _ -", maxInstance)
		default:
			err = checkTexts([]textField{{"peer_addr", req.PeerAddr, true}})
		}
		if err == nil {
			req.PeerAddr = seenFrom(req.PeerAddr, r.RemoteAddr)
			err = seen(r.Context(), req)
		}
		if err != nil {
			writeRefusal(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}\n")) // the caller is gone if this errs
	})
	return mux
}
