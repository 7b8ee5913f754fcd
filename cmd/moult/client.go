package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"moult/webui"
)

// defaultAddr is where a server's UI and API listen when nothing else is said.
const defaultAddr = "127.0.0.1:8480"

// requestTimeout bounds a call that is not an upload.
const requestTimeout = 30 * time.Second

// errUnreachable marks a call that no address answered.
var errUnreachable = errors.New("no server answers")

// apiError is an error that the API returned.
type apiError struct {
	Status  int
	Code    string
	Message string
}

func (e *apiError) Error() string { return e.Message + " (" + e.Code + ")" }

// client calls the HTTP API of whichever server answers.
type client struct {
	addrs []string
	token string
	http  *http.Client
}

// clientFlags are the flags that each client command has.
type clientFlags struct {
	addr, token, tokenFile string
	ca, caHash             string
	json                   bool
}

func (f *clientFlags) register(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&f.addr, "addr", defaultAddr, "server's UI address; several, separated by commas, are tried in turn")
	cmd.PersistentFlags().StringVar(&f.token, "token", "", "API token (better: MOULT_TOKEN, the process list does not show it)")
	cmd.PersistentFlags().StringVar(&f.tokenFile, "token-file", "", "file that holds the API token")
	cmd.PersistentFlags().StringVar(&f.ca, "ca", "", "PEM file of the CA that vouches for the servers' UI, such as a server's DATA/ui-ca.pem (default: the system's CAs)")
	cmd.PersistentFlags().StringVar(&f.caHash, "ca-sha256", "", "sha256 of that CA's certificate, in its place")
	cmd.PersistentFlags().BoolVar(&f.json, "json", false, "print JSON")
}

// run makes a command's function of one that calls the cluster.
func (f *clientFlags) run(do func(cmd *cobra.Command, c *client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		return do(cmd, c, args)
	}
}

func (f *clientFlags) client() (*client, error) {
	token := f.token
	if token == "" && f.tokenFile != "" {
		b, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("read --token-file: %w", err)
		}
		token = strings.TrimSpace(string(b))
	}
	trust, err := f.trust()
	if err != nil {
		return nil, err
	}
	c := &client{token: token, http: newAPIClient(trust)}
	for a := range strings.SplitSeq(f.addr, ",") {
		if a = strings.TrimRight(strings.TrimSpace(a), "/"); a == "" {
			continue
		}
		if !strings.Contains(a, "://") {
			a = uiURL(!isLoopback(a), a)
		}
		if u, err := url.Parse(a); err != nil || u.Host == "" {
			return nil, fmt.Errorf("--addr %q is not an address; give HOST:PORT, http://HOST:PORT or https://HOST:PORT", a)
		}
		c.addrs = append(c.addrs, a)
	}
	if len(c.addrs) == 0 {
		return nil, errors.New("--addr is empty; give a server's UI address, or set MOULT_ADDR")
	}
	return c, nil
}

// call sends in (nil: no body) and decodes the answer into out (nil: dropped).
// Reads go on to the next address when one does not answer; a write does so
// only when the connection was refused, so that it cannot be done twice.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	return c.try(ctx, method == http.MethodGet, func(addr string) error {
		req, err := http.NewRequestWithContext(ctx, method, addr+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		if in != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		return c.do(req, out)
	})
}

// try runs f against one address after the other until one answers, and goes on
// from a server that is not ready.
func (c *client) try(ctx context.Context, read bool, f func(addr string) error) error {
	var last error
	var notReady *apiError
	for _, addr := range c.addrs {
		err := f(addr)
		if errors.As(err, &notReady) && notReady.Status == http.StatusServiceUnavailable && (read || notReady.Code == "not_ready") {
			continue // a write that meets not_ready was not looked at
		}
		var transport *url.Error
		if err == nil || !errors.As(err, &transport) || ctx.Err() != nil {
			return err
		}
		if !strings.Contains(err.Error(), "connection refused") && transport.Op != "Get" {
			return fmt.Errorf("%w; it is unknown whether the change was made: look before you repeat it", err)
		}
		last = err
	}
	if notReady != nil {
		return notReady
	}
	return fmt.Errorf("%w at %s: %w; set --addr or MOULT_ADDR to a server's UI address", errUnreachable, strings.Join(c.addrs, ", "), last)
}

func (c *client) do(req *http.Request, out any) error {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return untrusted(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return readAPIError(resp)
	}
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("decode the answer of %s: %w", req.URL.Path, err)
	}
	return nil
}

func readAPIError(resp *http.Response) error {
	var body struct {
		Error struct{ Code, Message string }
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	e := &apiError{Status: resp.StatusCode, Code: "http_" + fmt.Sprint(resp.StatusCode), Message: strings.TrimSpace(string(b))}
	if json.Unmarshal(b, &body) == nil && body.Error.Code != "" {
		e.Code, e.Message = body.Error.Code, body.Error.Message
	}
	if e.Status == http.StatusBadRequest && strings.Contains(e.Message, "HTTP request to an HTTPS server") {
		e.Message = "the server speaks TLS; give its address as https://HOST:PORT, with --ca or --ca-sha256"
	}
	if e.Code == "unauthenticated" {
		e.Message += "; set MOULT_TOKEN to an API token"
	}
	return e
}

// The parts of the API's answers that the commands print.
type (
	apiHost struct {
		ID           string   `json:"id"`
		Name         string   `json:"name"`
		Segment      string   `json:"segment"`
		AlsoSegments []string `json:"also_segments"`
		Quarantine   *struct {
			Since time.Time `json:"since"`
			Why   string    `json:"why"`
		} `json:"quarantine"`
		OS               string            `json:"os"`
		Arch             string            `json:"arch"`
		AgentVersion     string            `json:"agent_version"`
		TargetVersion    string            `json:"target_version"`
		UpdateAvailable  bool              `json:"update_available"`
		Online           bool              `json:"online"`
		Status           string            `json:"status"`
		SeenVia          string            `json:"seen_via"`
		LastSeen         *time.Time        `json:"last_seen"`
		Phase            string            `json:"phase"`
		RunsFrom         string            `json:"runs_from"`
		KeptBytes        int64             `json:"kept_bytes"`
		UpdateInProgress bool              `json:"update_in_progress"`
		Labels           map[string]string `json:"labels"`
		Progress         *struct {
			Done  int64 `json:"done"`
			Total int64 `json:"total"`
		} `json:"progress,omitempty"`
		apiStaged
	}
	apiJob struct {
		ID            string      `json:"id"`
		HostID        string      `json:"host_id"`
		HostName      string      `json:"host_name,omitempty"`
		Kind          string      `json:"kind"`
		Status        string      `json:"status"`
		TargetVersion string      `json:"target_version"`
		Attempt       int         `json:"attempt"`
		Actor         string      `json:"actor"`
		CreatedAt     *time.Time  `json:"created_at"`
		StartedAt     *time.Time  `json:"started_at"`
		FinishedAt    *time.Time  `json:"finished_at"`
		Error         string      `json:"error"`
		Sources       []apiSource `json:"sources,omitempty"`
	}
	apiSource struct {
		HostID string `json:"host_id"`
		Name   string `json:"name"`
		Role   string `json:"role"`
		Bytes  int64  `json:"bytes"`
	}
	apiLogLine struct {
		Seq    uint64    `json:"seq"`
		At     time.Time `json:"at"`
		Stream string    `json:"stream"`
		Line   string    `json:"line"`
	}
	apiFleetUpdate struct {
		ID            string     `json:"id"`
		TargetVersion string     `json:"target_version"`
		Status        string     `json:"status"`
		CurrentHostID string     `json:"current_host_id"`
		HaltedReason  string     `json:"halted_reason"`
		StartedAt     *time.Time `json:"started_at"`
		StartedBy     string     `json:"started_by"`
		CompletedAt   *time.Time `json:"completed_at"`
		Hosts         []apiTurn  `json:"hosts"`
		WaitingFor    string     `json:"waiting_for"`
	}
	apiTurn struct {
		HostID       string `json:"host_id"`
		Name         string `json:"name"`
		Position     int    `json:"position"`
		Status       string `json:"status"`
		JobID        string `json:"job_id"`
		FailedReason string `json:"failed_reason"`
		Role         string `json:"role"`
		Phase        string `json:"phase"`
		apiStaged
	}
	// apiStaged is whether a host has what it is to have before its turn, and if not,
	// how far it is with it.
	apiStaged struct {
		Staged  bool `json:"staged"`
		Staging *struct {
			State  string `json:"state"`
			Done   int64  `json:"done"`
			Total  int64  `json:"total"`
			Reason string `json:"reason"`
		} `json:"staging,omitempty"`
	}
	apiFleetPlan struct {
		TargetVersion string `json:"target_version"`
		Hosts         []struct {
			HostID string `json:"host_id"`
			Name   string `json:"name"`
			Role   string `json:"role"`
		} `json:"hosts"`
		LeftOut []struct {
			HostID string `json:"host_id"`
			Name   string `json:"name"`
			Why    string `json:"why"`
		} `json:"left_out"`
		UpToDate int      `json:"up_to_date"`
		Warnings []string `json:"warnings"`
	}
	apiRelease struct {
		Version   string        `json:"version"`
		Number    uint64        `json:"number"`
		Available bool          `json:"available"`
		Staged    bool          `json:"staged"`
		Artifacts []apiArtifact `json:"artifacts"`
		// Staging is how far the hosts are with a release that all of them stage.
		Staging *apiReleaseStaging `json:"staging,omitempty"`
	}
	apiReleaseStaging struct {
		Hosts   int                `json:"hosts"`
		Staged  int                `json:"staged"`
		Failed  int                `json:"failed"`
		Done    int64              `json:"done"`
		Total   int64              `json:"total"`
		Reasons []apiStagingReason `json:"reasons"`
	}
	apiStagingReason struct {
		HostID string `json:"host_id"`
		Name   string `json:"name"`
		Reason string `json:"reason"`
	}
	apiArtifact struct {
		OS     string `json:"os"`
		Arch   string `json:"arch"`
		Size   int64  `json:"size"`
		SHA256 string `json:"sha256"`
	}
	apiAlerts struct {
		Alerts []apiAlert `json:"alerts"`
	}
	apiAlert struct {
		ID            string     `json:"id"`
		Kind          string     `json:"kind"`
		HostID        string     `json:"host_id"`
		FleetUpdateID string     `json:"fleet_update_id"`
		Message       string     `json:"message"`
		Status        string     `json:"status"`
		OpenedAt      *time.Time `json:"opened_at"`
		ResolvedAt    *time.Time `json:"resolved_at"`
	}
	apiServer struct {
		ID           string          `json:"id"`
		Name         string          `json:"name"`
		Address      string          `json:"address"`
		Version      string          `json:"version"`
		Leader       bool            `json:"leader"`
		Voter        bool            `json:"voter"`
		Standby      bool            `json:"standby"`
		AppliedIndex uint64          `json:"applied_index"`
		Healthy      bool            `json:"healthy"`
		Problems     []webui.Problem `json:"problems"`
	}
)

func (c *client) hosts(ctx context.Context, query string) ([]apiHost, error) {
	var out struct{ Hosts []apiHost }
	err := c.call(ctx, http.MethodGet, "/api/hosts"+query, nil, &out)
	return out.Hosts, err
}

// hostByName finds a host by its name or its id.
func (c *client) hostByName(ctx context.Context, name string) (apiHost, error) {
	hosts, err := c.hosts(ctx, "")
	if err != nil {
		return apiHost{}, err
	}
	for _, h := range hosts {
		if h.Name == name || h.ID == name {
			return h, nil
		}
	}
	return apiHost{}, fmt.Errorf("no host is called %q; `moult hosts` lists them", name)
}

func (c *client) fleetUpdates(ctx context.Context) ([]apiFleetUpdate, error) {
	var out struct {
		FleetUpdates []apiFleetUpdate `json:"fleet_updates"`
	}
	err := c.call(ctx, http.MethodGet, "/api/fleet-updates", nil, &out)
	return out.FleetUpdates, err
}

func (c *client) servers(ctx context.Context) ([]apiServer, error) {
	var out struct{ Servers []apiServer }
	err := c.call(ctx, http.MethodGet, "/api/servers", nil, &out)
	return out.Servers, err
}
