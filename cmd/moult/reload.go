package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// reloadTimeout bounds asking the process to reload.
const reloadTimeout = 10 * time.Second

// pathReload is asked by `moult config reload` on the same host, with the host's own
// certificate: POST gives a reloadReport. Nobody else gets an answer.
const pathReload = "/node/self/reload"

// reloadReport is what came of reading the configuration again.
type reloadReport struct {
	File         string   `json:"file"`
	Applied      []string `json:"applied"`       // keys that changed and took effect
	NeedsRestart []string `json:"needs_restart"` // keys that changed and did not
	Error        string   `json:"error,omitempty"`
}

func (r reloadReport) String() string {
	switch {
	case r.Error != "":
		return r.Error
	case len(r.Applied)+len(r.NeedsRestart) == 0:
		return "nothing has changed in " + r.File
	}
	var said []string
	if len(r.Applied) > 0 {
		said = append(said, "taken over: "+strings.Join(r.Applied, ", "))
	}
	if len(r.NeedsRestart) > 0 {
		said = append(said, "needs a restart: "+strings.Join(r.NeedsRestart, ", "))
	}
	return strings.Join(said, "; ")
}

// takeOver has a running node serve, fetch and log as o says.
func (a *artifactSide) takeOver(running, o nodeOptions) {
	running.logDebug = o.logDebug
	running.setLevel()
	a.served.SetLimits(o.serve.limits())
	a.patchLimiter.SetLimit(rateOf(o.serve.rate))
	a.limiter.SetLimit(rateOf(o.serve.pull))
}

// rateOf is a rate of settings, in which 0 is no limit.
func rateOf(bytesPerSecond byteSize) rate.Limit {
	if bytesPerSecond == 0 {
		return rate.Inf
	}
	return rate.Limit(bytesPerSecond)
}

// reloads is how a node that has held reads its configuration again; nil: it has none.
func (o nodeOptions) reloads(held *artifactSide, logger *slog.Logger) func() reloadReport {
	if o.reread == nil {
		return nil
	}
	return o.reread(func(now nodeOptions) { held.takeOver(o, now) }, logger.With("component", "configuration"))
}

// onHangup reloads at each SIGHUP until ctx ends.
func onHangup(ctx context.Context, reload func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			reload()
		}
	}
}

// reloadEndpoint answers this host, and nobody else.
func reloadEndpoint(reload func() reloadReport, self string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if nodeport.PeerFrom(req.Context()).HostID != self {
			http.Error(w, "only this host may ask", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(reload()) // the caller is gone if this errs
	}
}

// askToReload has the node that runs on this host read its configuration again.
func askToReload(ctx context.Context, data string) (report reloadReport, err error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	running, err := readRunning(data)
	if err != nil {
		return report, fmt.Errorf("find the process: %w; is --data right, and does it run? See: moult doctor", err)
	}
	ids, err := identity.OpenStore(filepath.Join(data, "identity"))
	if err != nil {
		return report, err
	}
	creds, err := ids.Load()
	if err != nil {
		return report, err
	}
	client := clientOfSelf(creds)
	defer client.CloseIdleConnections()
	if err := (&serverClient{http: client}).postJSON(ctx, running.Peer, pathReload, struct{}{}, &report); err != nil {
		return report, fmt.Errorf("ask the process at %s: %w; does it run? See: moult doctor", running.Peer, err)
	}
	return report, nil
}
