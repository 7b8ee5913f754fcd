package webui

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"moult/consensus/fleet"
)

// The codes of refusals that this package gives, besides package fleet's.
const (
	CodeBadSignature   = "bad_signature"
	CodeDigestMismatch = "digest_mismatch"

	codeUnauthenticated  = "unauthenticated"
	codeForbidden        = "forbidden"
	codeMustChange       = "password_change_required"
	codeConfirmFirst     = "reauthentication_required"
	codeCrossOrigin      = "cross_origin"
	codeNotFound         = "not_found"
	codeServerNotFound   = "server_not_found"
	codeNoSuchBuild      = "no_such_build"
	codeMethodNotAllowed = "method_not_allowed"
	codeTooLarge         = "too_large"
	codeTooManyAttempts  = "too_many_attempts"
	codeTooManyStreams   = "too_many_streams"
	codeHostOffline      = "host_offline"
	codeUpToDate         = "already_up_to_date"
	codeHostsChanged     = "hosts_changed"
	codeHostsPending     = "hosts_pending"
	codeHostsUnheard     = "hosts_unheard"
	codeNoAccount        = "no_account"
	codeInternal         = "internal"
	codeUnavailable      = "unavailable"
	codeNoMajority       = "no_majority"
	codeNotReady         = "not_ready"
	codeBusy             = "busy"
	codeReceiverFailed   = "receiver_failed"
)

// statuses maps codes to HTTP statuses. A code that ends in _not_found is 404
// without being named, any other that is not named is 409: a refusal by the state.
var statuses = map[string]int{
	fleet.CodeBadRequest:    http.StatusBadRequest,
	CodeBadSignature:        http.StatusBadRequest,
	CodeDigestMismatch:      http.StatusBadRequest,
	codeUnauthenticated:     http.StatusUnauthorized,
	codeForbidden:           http.StatusForbidden,
	codeMustChange:          http.StatusForbidden,
	codeConfirmFirst:        http.StatusForbidden,
	codeCrossOrigin:         http.StatusForbidden,
	codeNotFound:            http.StatusNotFound,
	codeNoSuchBuild:         http.StatusNotFound,
	codeMethodNotAllowed:    http.StatusMethodNotAllowed,
	codeTooLarge:            http.StatusRequestEntityTooLarge,
	codeTooManyAttempts:     http.StatusTooManyRequests,
	codeTooManyStreams:      http.StatusTooManyRequests,
	codeInternal:            http.StatusInternalServerError,
	codeUnavailable:         http.StatusServiceUnavailable,
	codeNoMajority:          http.StatusServiceUnavailable,
	codeNotReady:            http.StatusServiceUnavailable,
	codeBusy:                http.StatusServiceUnavailable,
	codeHostsUnheard:        http.StatusServiceUnavailable,
	codeReceiverFailed:      http.StatusBadGateway,
	fleet.CodeUnknownChange: http.StatusServiceUnavailable,
}

func statusOf(code string) int {
	if status, ok := statuses[code]; ok {
		return status
	}
	if strings.HasSuffix(code, "_not_found") {
		return http.StatusNotFound
	}
	return http.StatusConflict
}

// refuse makes a coded refusal; message is a sentence for people.
func refuse(code, message string) *fleet.Error {
	return &fleet.Error{Code: code, Message: message}
}

// handler serves a request or returns why it did not. It returns an error only
// before it has written anything.
type handler func(w http.ResponseWriter, r *http.Request) error

// render is the one place where errors become answers.
func (u *ui) render(w http.ResponseWriter, r *http.Request, err error) {
	var coded *fleet.Error
	if !errors.As(err, &coded) {
		if r.Context().Err() != nil {
			return // the client is gone
		}
		u.Logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		coded = refuse(codeInternal, "something went wrong on this server; its log tells what")
	}
	status := statusOf(coded.Code)
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="moult"`)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "2")
	}
	if wantsJSON(r) {
		writeJSON(w, status, errorJSON{Error: *coded})
		return
	}
	u.renderError(w, r, status, coded.Message)
}

// errorJSON is the body of every error under /api.
type errorJSON struct {
	Error fleet.Error `json:"error"`
}

// wantsJSON tells programs' paths from pages.
func wantsJSON(r *http.Request) bool {
	for _, prefix := range []string{"/api/", "/agent/", "/healthz", "/readyz", "/metrics"} {
		if strings.HasPrefix(r.URL.Path, prefix) {
			return true
		}
	}
	return false
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error means that the client is gone
}

// ok answers 200 with a body.
func ok(w http.ResponseWriter, body any) error {
	writeJSON(w, http.StatusOK, body)
	return nil
}

// done answers 200 where there is nothing to tell.
func done(w http.ResponseWriter) error { return ok(w, struct{}{}) }
