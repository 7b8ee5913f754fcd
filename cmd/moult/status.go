package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
)

func newStatusCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell whether the cluster is healthy",
		Long: `Tell whether the cluster is healthy.

Exit code 0: healthy. 1: degraded (something is wrong with a server, no leader,
hosts offline or unreachable, open alerts). 2: no server answers.`,
		Example: "  moult status\n  moult status --json || echo look at it",
		Args:    cobra.NoArgs,
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			s, err := clusterStatus(cmd, c)
			if errors.Is(err, errUnreachable) {
				return &exitError{code: exitUnreachable, err: err}
			}
			if err != nil {
				return err
			}
			if f.json {
				err = printJSON(cmd.OutOrStdout(), s)
			} else {
				unreachable := ""
				if s.HostsUnreachable > 0 {
					unreachable = fmt.Sprintf(", %d unreachable", s.HostsUnreachable)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "servers  %d of %d healthy, leader %s\nhosts    %d of %d online, %d behind%s\nalerts   %d open\n",
					s.ServersHealthy, s.Servers, dash(s.Leader), s.HostsOnline, s.Hosts, s.HostsBehind, unreachable, s.AlertsOpen)
				if s.FleetUpdate != "" {
					fmt.Fprintf(cmd.OutOrStdout(), "fleet    update to %s is %s\n", printable(s.FleetUpdateTarget), s.FleetUpdate)
				}
				if s.CAChange != nil {
					fmt.Fprintf(cmd.OutOrStdout(), "CA       %s\n", s.CAChange.told())
				}
				for _, p := range s.Problems {
					fmt.Fprintf(cmd.OutOrStdout(), "problem  %s\n", printable(p))
				}
			}
			if err == nil && len(s.Problems) > 0 {
				return &exitError{code: exitDegraded}
			}
			return err
		}),
	}
	f.register(cmd)
	return cmd
}

type statusReport struct {
	Healthy           bool     `json:"healthy"`
	Problems          []string `json:"problems"`
	Servers           int      `json:"servers"`
	ServersHealthy    int      `json:"servers_healthy"`
	Leader            string   `json:"leader"`
	Hosts             int      `json:"hosts"`
	HostsOnline       int      `json:"hosts_online"`
	HostsUnreachable  int      `json:"hosts_unreachable"`
	HostsBehind       int      `json:"hosts_behind"`
	AlertsOpen        int      `json:"alerts_open"`
	FleetUpdate       string   `json:"fleet_update,omitempty"`
	FleetUpdateTarget string   `json:"fleet_update_target,omitempty"`

	CAChange *caChange `json:"ca_change,omitempty"` // while the CA is being changed
}

// caChange is how far a change of the CA is. That one is under way is no problem of
// the cluster's.
type caChange struct {
	Stage    string   `json:"stage"`
	Hosts    int      `json:"hosts"`
	Followed int      `json:"followed"`
	Pending  []string `json:"pending"` // names of the other hosts
	Next     string   `json:"next"`    // command
}

// maxPendingNamed is how many hosts that have not followed the status names.
const maxPendingNamed = 5

func (c caChange) told() string {
	told := fmt.Sprintf("is being changed, %s: %d of %d hosts have followed", c.Stage, c.Followed, c.Hosts)
	if n := len(c.Pending); n > 0 {
		told += ", not yet " + printable(strings.Join(c.Pending[:min(n, maxPendingNamed)], ", "))
		if n > maxPendingNamed {
			told += fmt.Sprintf(" and %d others", n-maxPendingNamed)
		}
		told += "; why: moult ca status"
	}
	return told + "; next: " + c.Next
}

// caChange asks how far a change of the CA is; nil: none is under way.
func (c *client) caChange(ctx context.Context) (*caChange, error) {
	a, err := c.ca(ctx)
	var refused *apiError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil, nil // a server of an older version
	}
	if err != nil || a.Stage == "" {
		return nil, err
	}
	out := &caChange{Stage: a.Stage, Hosts: a.Hosts, Followed: a.Confirmed, Pending: []string{}, Next: "moult ca rotate"}
	for _, h := range a.Pending {
		out.Pending = append(out.Pending, h.Name)
	}
	return out, nil
}

func clusterStatus(cmd *cobra.Command, c *client) (statusReport, error) {
	ctx := cmd.Context()
	s := statusReport{Problems: []string{}}
	servers, err := c.servers(ctx)
	if err != nil {
		return s, err
	}
	for _, srv := range servers {
		s.Servers++
		if srv.Healthy {
			s.ServersHealthy++
		} else if len(srv.Problems) == 0 { // an older server answers for all
			s.Problems = append(s.Problems, fmt.Sprintf("server %s does not answer, or is not ready; look at its log, or start it again", srv.Name))
		}
		for _, p := range srv.Problems {
			s.Problems = append(s.Problems, fmt.Sprintf("server %s: %s", srv.Name, p))
		}
		if srv.Leader {
			s.Leader = srv.Name
		}
	}
	if s.Leader == "" {
		s.Problems = append(s.Problems, "no leader; a majority of the servers must be up")
	}
	hosts, err := c.hosts(ctx, "")
	if err != nil {
		return s, err
	}
	for _, h := range hosts {
		s.Hosts++
		if h.UpdateAvailable {
			s.HostsBehind++
		}
		switch h.status() {
		case "online":
			s.HostsOnline++
		case "unreachable":
			s.HostsUnreachable++
			s.Problems = append(s.Problems, fmt.Sprintf("host %s is unreachable, seen %s: no relay of segment %s is online", h.Name, h.seen(), h.Segment))
		default:
			s.Problems = append(s.Problems, fmt.Sprintf("host %s is offline, seen %s", h.Name, h.seen()))
		}
	}
	var alerts apiAlerts
	if err := c.call(ctx, http.MethodGet, "/api/alerts", nil, &alerts); err != nil {
		return s, err
	}
	for _, a := range alerts.Alerts {
		if a.Status == "open" {
			s.AlertsOpen++
			s.Problems = append(s.Problems, "alert: "+a.Message)
		}
	}
	updates, err := c.fleetUpdates(ctx)
	if err != nil {
		return s, err
	}
	if len(updates) > 0 {
		s.FleetUpdate, s.FleetUpdateTarget = updates[0].Status, updates[0].TargetVersion
	}
	if s.CAChange, err = c.caChange(ctx); err != nil {
		return s, err
	}
	s.Healthy = len(s.Problems) == 0
	return s, nil
}
