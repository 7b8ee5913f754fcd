// Package registers checks what clients wrote to and read from a group of servers
// for linearizability, for tests: is there one order of all calls, which keeps to
// the order of those that did not overlap, in which each read returns what was
// written last?
//
// A test gives each register to a thing with one value (a host's label, a user's
// password), calls Write and Read from many goroutines, and Check at the end. Of a
// write whose outcome is not known it is only said that it may have taken effect,
// once, at any time after it began; package porcupine searches for the order.
package registers

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// ErrUnknown wraps the error of a write that may have taken effect, or may yet.
var ErrUnknown = errors.New("the outcome is unknown")

// History is what clients did. Safe for concurrent use.
type History struct {
	began time.Time

	mu      sync.Mutex
	calls   []porcupine.Operation
	unknown int
}

// New returns an empty history, in which each register has the value "".
func New() *History { return &History{began: time.Now()} }

// call is the input of an operation; its output is the value read.
type call struct {
	register, value string
	write           bool
}

// Write records a write. An error that wraps ErrUnknown leaves its outcome open; any
// other says that it had and will have none.
func (h *History) Write(client int, register, value string, do func() error) error {
	start := time.Since(h.began)
	err := do()
	end := int64(time.Since(h.began))
	unknown := errors.Is(err, ErrUnknown)
	if err != nil && !unknown {
		return err
	}
	if unknown {
		end = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if unknown {
		h.unknown++
	}
	h.calls = append(h.calls, porcupine.Operation{ClientId: client, Input: call{register, value, true}, Call: int64(start), Output: "", Return: end})
	return err
}

// Read records a read, if it is answered.
func (h *History) Read(client int, register string, do func() (string, error)) error {
	start := time.Since(h.began)
	value, err := do()
	end := time.Since(h.began)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, porcupine.Operation{ClientId: client, Input: call{register: register}, Call: int64(start), Output: value, Return: int64(end)})
	return nil
}

// Count tells how many calls there were, and of how many writes the outcome is
// unknown.
func (h *History) Count() (calls, unknown int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.calls), h.unknown
}

// Check returns an error when the history is not linearizable, or when that was not
// found out within limit. A picture of it, a page of HTML, is written to w in that
// case, unless w is nil.
func (h *History) Check(limit time.Duration, w io.Writer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	result, info := porcupine.CheckOperationsVerbose(model, h.calls, limit)
	if result == porcupine.Ok {
		return nil
	}
	err := fmt.Errorf("%d calls: linearizable: %s", len(h.calls), result)
	if w != nil {
		err = errors.Join(err, porcupine.Visualize(model, info, w))
	}
	return err
}

// model is of one register; porcupine checks each on its own.
var model = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		of := map[string][]porcupine.Operation{}
		for _, o := range all {
			r := o.Input.(call).register
			of[r] = append(of[r], o)
		}
		out := make([][]porcupine.Operation, 0, len(of))
		for _, ops := range of {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		c := input.(call)
		if c.write {
			return true, c.value
		}
		return output == state, state
	},
	DescribeOperation: func(input, output any) string {
		c := input.(call)
		if c.write {
			return fmt.Sprintf("%s := %s", c.register, c.value)
		}
		return fmt.Sprintf("%s = %v", c.register, output)
	},
}
