package webui

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"moult/consensus/fleet"
)

// Limits of requests.
const (
	maxJSONBody    = 1 << 20 // bytes; the log takes no larger change anyway
	maxLoginForm   = 8 << 10 // bytes
	bodyTimeout    = 15 * time.Second
	proposeTimeout = 10 * time.Second
)

func badRequest(format string, args ...any) *fleet.Error {
	return refuse(fleet.CodeBadRequest, fmt.Sprintf(format, args...))
}

// decode reads a JSON body into v, strictly: what is not understood is refused,
// by name. No body at all is the same as {}.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	defer limitBody(w, r, maxJSONBody)()
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = errors.New("there is more than one JSON value")
		}
	}
	return bodyError(err)
}

// limitBody bounds a body in size and time. The function it returns ends the
// time limit: left in place it would end the request's context.
func limitBody(w http.ResponseWriter, r *http.Request, limit int64) func() {
	r.Body = http.MaxBytesReader(w, r.Body, limit)
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // not supported by recorders in tests
	return func() { _ = rc.SetReadDeadline(time.Time{}) }
}

// bodyError tells which field of a JSON body is wrong.
func bodyError(err error) error {
	var large *http.MaxBytesError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &large):
		return refuse(codeTooLarge, fmt.Sprintf("the body is larger than %d bytes", large.Limit))
	case errors.As(err, &kind) && kind.Field != "":
		return badRequest("%s: a JSON %s does not fit here", kind.Field, kind.Value)
	}
	if field, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); unknown {
		return badRequest("unknown field %s; /api/openapi.json describes the bodies", field)
	}
	return badRequest("body: not the JSON that is expected (%v)", err)
}

// noBody refuses fields where none are expected.
func noBody(w http.ResponseWriter, r *http.Request) error {
	return decode(w, r, &struct{}{})
}

// queryUint reads a number from the query; fallback if it is absent.
func queryUint(r *http.Request, name string, fallback uint64) (uint64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, badRequest("%s: %q is not a number", name, text)
	}
	return n, nil
}

// queryBool reads true or false from the query; false if it is absent.
func queryBool(r *http.Request, name string) (bool, error) {
	text, err := queryChoice(r, name, "true", "false")
	return text == "true", err
}

// queryChoice reads one of several words from the query; "" if it is absent.
func queryChoice(r *http.Request, name string, choices ...string) (string, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return "", nil
	}
	for _, c := range choices {
		if text == c {
			return text, nil
		}
	}
	return "", badRequest("%s: %q is not %s", name, text, strings.Join(choices, " or "))
}

// propose has a change committed in the name of the request's sender.
func (u *ui) propose(r *http.Request, c fleet.Change) error {
	return u.proposeAs(r.Context(), callerOf(r).Actor, c)
}

func (u *ui) proposeAs(ctx context.Context, actor string, c fleet.Change) error {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	_, err := u.Proposer.Propose(ctx, actor, c)
	return unavailableUnlessRefused(err)
}

// unavailableUnlessRefused keeps refusals and turns any other error into one
// that tells that the servers cannot do it now.
func unavailableUnlessRefused(err error) error {
	var refused *fleet.Error
	if err == nil || errors.As(err, &refused) {
		return err
	}
	return refuse(codeUnavailable, err.Error())
}
