package nodekit

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

const (
	// CheckInEvery is how often a host shows itself, and after how long at most first.
	CheckInEvery = 5 * time.Minute
	checkInFirst = 10 * time.Second // after the start, at most
	checkInRetry = time.Minute
	checkInAsked = 8 // hosts asked in one attempt
)

// NewInstance names this process.
func NewInstance() string { return rand.Text() }

// Shower is an agent's side.
type Shower struct {
	Instance string
	Peer     string // node port, as advertised
	Current  *identity.Current
	Ways     func(visited []string) []nodeport.Way
	denied   func(raw []byte) // takes a deny-list
	Logger   *slog.Logger
}

// run checks in until ctx ends.
func (s *Shower) run(ctx context.Context) {
	wait := mathrand.N(checkInFirst)
	for Sleep(ctx, wait) {
		wait = CheckInEvery*4/5 + mathrand.N(CheckInEvery/5)
		if err := s.Once(ctx); err != nil && ctx.Err() == nil {
			s.Logger.Debug("no server was reached to check in", "error", err)
			wait = checkInRetry
		}
	}
}

// Once shows the host to the first server that is reached.
func (s *Shower) Once(ctx context.Context) error {
	ways := s.Ways(nil)
	var errs []error
	for _, w := range ways[:min(len(ways), checkInAsked)] {
		answer, err := identity.CheckIn(ctx, w.Addr, s.Current.Get(), identity.CheckInRequest{Instance: s.Instance, PeerAddr: s.Peer})
		if len(answer.Denied) > 0 {
			s.denied(answer.Denied)
		}
		var coded *identity.CodedError
		if err == nil || errors.As(err, &coded) && coded.Status < 500 && coded.Status != 404 { // 404: a server of an older version
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
