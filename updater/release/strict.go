package release

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// decodeStrictly decodes one JSON value. encoding/json alone would take "Number"
// for "number" and let the last of two fields win, so a reviewer could read one
// number and a host install by another.
func decodeStrictly(text []byte, into any) error {
	if err := checkFields(json.NewDecoder(bytes.NewReader(text))); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there are bytes after its end")
	}
	return nil
}

// maxDepth is deeper than any manifest nests: an object, an array, an object.
const maxDepth = 8

// level is an object or an array that has been entered and not yet left.
type level struct {
	object bool
	key    bool // the next token is a field's name
	seen   map[string]bool
}

// checkFields walks one JSON value and refuses fields that are there twice or
// are not in lower case, as all of a manifest's and a statement's are.
func checkFields(dec *json.Decoder) error {
	var open []*level
	for {
		token, err := dec.Token()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		if len(open) > 0 {
			if top := open[len(open)-1]; top.object {
				if name, ok := token.(string); ok && top.key {
					if err := top.enter(name); err != nil {
						return err
					}
					continue
				}
				top.key = true // what follows this value is a name, or the end
			}
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			if len(open) == maxDepth {
				return fmt.Errorf("it nests deeper than %d", maxDepth)
			}
			object := token == json.Delim('{')
			open = append(open, &level{object: object, key: object, seen: map[string]bool{}})
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
		if len(open) == 0 {
			return nil
		}
	}
}

// enter takes a field's name.
func (l *level) enter(name string) error {
	if l.seen[name] {
		return fmt.Errorf("the field %q is there twice", name)
	}
	if !onlyOf(name, lower+digits+"_") {
		return fmt.Errorf("the field %q is not known", name)
	}
	l.seen[name], l.key = true, false
	return nil
}
