package nodekit

import (
	"context"
	"log/slog"
	"time"
)

// Limits of a server's start and stop.
const (
	serverStopTimeout = 10 * time.Second
	RetryInterval     = time.Second
)

// CloseWithin closes something in bounded time, and tells when it could not.
func CloseWithin(f func(context.Context) error, logger *slog.Logger, what string) {
	ctx, cancel := context.WithTimeout(context.Background(), serverStopTimeout)
	defer cancel()
	if err := f(ctx); err != nil {
		logger.Warn("close", "what", what, "error", err)
	}
}
