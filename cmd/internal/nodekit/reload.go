package nodekit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// maxReport bounds a report in bytes.
const maxReport = 64 << 10

// PathReload is asked by `moult config reload` on the same host, with the host's own
// certificate: POST gives a reloadReport. Nobody else gets an answer.
const PathReload = "/node/self/reload"

// ReloadReport is what came of reading the configuration again.
type ReloadReport struct {
	File         string   `json:"file"`
	Applied      []string `json:"applied"`       // keys that changed and took effect
	NeedsRestart []string `json:"needs_restart"` // keys that changed and did not
	Error        string   `json:"error,omitempty"`
}

func (r ReloadReport) String() string {
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
func (a *artifactSide) takeOver(running, o NodeOptions) {
	running.logDebug = o.logDebug
	running.setLevel()
	a.Served.SetLimits(o.Serve.limits())
	a.patchLimiter.SetLimit(rateOf(o.Serve.rate))
	a.Limiter.SetLimit(rateOf(o.Serve.Pull))
	a.Store.SetLimit(int64(o.Serve.store))
}

// rateOf is a rate of settings, in which 0 is no limit.
func rateOf(bytesPerSecond byteSize) rate.Limit {
	if bytesPerSecond == 0 {
		return rate.Inf
	}
	return rate.Limit(bytesPerSecond)
}

// Reloads is how a node that has held reads its configuration again; nil: it has none.
func (o NodeOptions) Reloads(held *artifactSide, logger *slog.Logger) func() ReloadReport {
	if o.Reread == nil {
		return nil
	}
	return o.Reread(func(now NodeOptions) { held.takeOver(o, now) }, logger.With("component", "configuration"))
}

// OnHangup reloads at each SIGHUP until ctx ends.
func OnHangup(ctx context.Context, reload func()) {
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

// ReloadEndpoint answers this host, and nobody else.
func ReloadEndpoint(reload func() ReloadReport, self string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if nodeport.PeerFrom(req.Context()).HostID != self {
			http.Error(w, "only this host may ask", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(reload()) // the caller is gone if this errs
	}
}

// AskToReload has the node that runs on this host read its configuration again.
func AskToReload(ctx context.Context, data string) (report ReloadReport, err error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	running, err := ReadRunning(data)
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
	client := ClientOfSelf(creds)
	defer client.CloseIdleConnections()
	if err := postReload(ctx, client, running.Peer, &report); err != nil {
		return report, fmt.Errorf("ask the process at %s: %w; does it run? See: moult doctor", running.Peer, err)
	}
	return report, nil
}

func postReload(ctx context.Context, client *http.Client, addr string, report *ReloadReport) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+PathReload, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxReport)).Decode(report)
}
