package registers

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"
)

func mustBe(t *testing.T, h *History, linearizable bool) {
	t.Helper()
	var picture bytes.Buffer
	err := h.Check(10*time.Second, &picture)
	if (err == nil) != linearizable {
		t.Errorf("linearizable is %v: %v", err == nil, err)
	}
	if !linearizable && picture.Len() == 0 {
		t.Error("no picture of what is wrong")
	}
}

func write(t *testing.T, h *History, value string, outcome error) {
	t.Helper()
	if err := h.Write(1, "r", value, func() error { return outcome }); !errors.Is(err, outcome) {
		t.Fatal(err)
	}
}

func read(t *testing.T, h *History, value string) {
	t.Helper()
	if err := h.Read(2, "r", func() (string, error) { return value, nil }); err != nil {
		t.Fatal(err)
	}
}

func TestStaleReadIsFound(t *testing.T) {
	h := New()
	read(t, h, "")
	write(t, h, "a", nil)
	read(t, h, "a")
	mustBe(t, h, true)
	write(t, h, "b", nil)
	read(t, h, "a") // after b was acknowledged
	mustBe(t, h, false)
}

func TestReadThatGoesBackIsFound(t *testing.T) {
	h := New()
	write(t, h, "a", nil)
	write(t, h, "b", fmt.Errorf("no answer: %w", ErrUnknown))
	read(t, h, "b")
	mustBe(t, h, true)
	read(t, h, "a")
	mustBe(t, h, false)
}

func TestUnknownWriteMayTakeEffectLateOrNever(t *testing.T) {
	h := New()
	write(t, h, "a", nil)
	write(t, h, "b", ErrUnknown)
	read(t, h, "a")
	read(t, h, "a")
	mustBe(t, h, true)
	read(t, h, "b")
	mustBe(t, h, true)
	if calls, unknown := h.Count(); calls != 5 || unknown != 1 {
		t.Errorf("%d calls, %d unknown", calls, unknown)
	}
}

func TestRefusedWriteMustNotBeSeen(t *testing.T) {
	h := New()
	write(t, h, "a", errors.New("no leader"))
	read(t, h, "")
	mustBe(t, h, true)
	read(t, h, "a")
	mustBe(t, h, false)
}

func TestRegistersAreApart(t *testing.T) {
	h := New()
	write(t, h, "a", nil)
	if err := h.Read(1, "other", func() (string, error) { return "", nil }); err != nil {
		t.Fatal(err)
	}
	mustBe(t, h, true)
}
