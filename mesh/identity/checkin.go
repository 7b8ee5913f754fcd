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
	// Denied is which deny-list the host follows; set by CheckIn. A host of an older
	// version does not say, and gets none by this way.
	Denied *DenyListNumber `json:"denied,omitempty"`
}

// DenyListNumber names a deny-list; zeros: none.
type DenyListNumber struct {
	Epoch  uint64 `json:"epoch"`
	Number uint64 `json:"number"`
}

// Before tells whether this deny-list is an older one than the other.
func (n DenyListNumber) Before(other DenyListNumber) bool {
	return n.Epoch < other.Epoch || n.Epoch == other.Epoch && n.Number < other.Number
}

// CheckInAnswer is what a server says to that.
type CheckInAnswer struct {
	Denied []byte `json:"denied,omitempty"` // the newest deny-list, where the host's is older
}

// CheckIn shows this host to the server at addr (HOST:PORT of its node port, or of
// a relay's). It takes at most 20 s. A *CodedError is a server's refusal.
func CheckIn(ctx context.Context, addr string, c Credentials, req CheckInRequest) (CheckInAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var follows DenyListNumber
	follows.Epoch, follows.Number = c.Denials.Followed()
	req.Denied = &follows
	var answer CheckInAnswer
	if err := ask(ctx, askClient(c.ClientTLS(ALPNRenew, serversOnly)), "https://"+addr+checkInPath, req, &answer); err != nil {
		return CheckInAnswer{}, fmt.Errorf("check in at %s: %w", addr, err)
	}
	return answer, nil
}

// CheckInHandler serves check-ins, on moult-renew beside RenewHandler. seen gets
// those that are well-formed; its *CodedError reaches the host as it is.
func CheckInHandler(next http.Handler, seen func(ctx context.Context, req CheckInRequest) (CheckInAnswer, error)) http.Handler {
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
		var answer CheckInAnswer
		if err == nil {
			req.PeerAddr = seenFrom(req.PeerAddr, r.RemoteAddr)
			answer, err = seen(r.Context(), req)
		}
		if err != nil {
			writeRefusal(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // the caller is gone if this errs
	})
	return mux
}
