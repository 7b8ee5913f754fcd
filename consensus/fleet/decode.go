package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// entryVersion is the version of all bodies today.
const entryVersion = 1

// NewEntry wraps a change. The id names the proposal, at most 64 of
// a-z A-Z 0-9 . _ -; the actor is who wants the change, at most 128 bytes.
func NewEntry(id, actor string, at time.Time, c Change) (Entry, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return Entry{}, fmt.Errorf("encode %s: %w", c.Kind(), err)
	}
	return Entry{Type: c.Kind(), Version: entryVersion, ID: id, Actor: actor, At: at, Body: body}, nil
}

// DecodeEntry reads an entry of the log, as json.Marshal wrote it. It tells only
// whether the bytes are an entry; whether its change is known and legal is for
// Apply to say.
func DecodeEntry(b []byte) (Entry, error) {
	var e Entry
	if err := decodeOne(b, &e); err != nil {
		return Entry{}, fmt.Errorf("decode entry: %w", err)
	}
	return e, nil
}

// decodeBody reads a change. What is wrong is said in words of this package and
// not in encoding/json's: refusals are replicated, and those words change with
// the version of Go that a server was built with.
func decodeBody(body []byte, c Change) *Error {
	// "null" decodes into anything without a word.
	if b := bytes.TrimSpace(body); len(b) == 0 || b[0] != '{' {
		return refuse(CodeBadRequest, "%s: the body is not a JSON object; send the fields of the change", c.Kind())
	}
	err := decodeOne(body, c)
	if err == nil {
		return nil
	}
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) && wrong.Field != "" {
		return refuse(CodeBadRequest, "%s: the field %s has the wrong type; look it up in the API's description", c.Kind(), wrong.Field)
	}
	if field := badField(body, c); field != "" {
		return refuse(CodeBadRequest, "%s: the field %s is malformed; look it up in the API's description", c.Kind(), field)
	}
	return refuse(CodeBadRequest, "%s: the body is not valid JSON; send one object and nothing after it", c.Kind())
}

// badField finds the top-level field that does not decode: errors of time.Time
// and of base64 do not name theirs.
func badField(body []byte, c Change) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil {
		return ""
	}
	bad := ""
	for name, raw := range fields {
		one, err := json.Marshal(map[string]json.RawMessage{name: raw})
		if err != nil || json.Unmarshal(one, c) == nil {
			continue
		}
		if bad == "" || name < bad { // the least: maps have no order
			bad = name
		}
	}
	return bad
}

// decodeOne decodes one JSON value with nothing after it. Unknown fields pass: a
// newer server may send more of them.
func decodeOne(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("bytes after the value")
	}
	return nil
}
