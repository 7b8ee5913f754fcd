package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

func newServersCommand() *cobra.Command {
	var f clientFlags
	list := func(cmd *cobra.Command, _ []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		servers, err := c.servers(cmd.Context())
		if err != nil {
			return err
		}
		if f.json {
			return printJSON(cmd.OutOrStdout(), map[string]any{"servers": servers})
		}
		var rows [][]string
		for _, s := range servers {
			role := "non-voter"
			if s.Standby {
				role = "standby"
			}
			if s.Voter {
				role = "voter"
			}
			if s.Leader {
				role = "leader"
			}
			health := "healthy"
			if !s.Healthy {
				health = "unhealthy"
			}
			rows = append(rows, []string{printable(s.Name), role, health, s.Address, dash(s.Version), fmt.Sprint(s.AppliedIndex)})
		}
		return printTable(cmd.OutOrStdout(), []string{"NAME", "ROLE", "HEALTH", "ADDRESS", "VERSION", "APPLIED"}, rows)
	}
	cmd := &cobra.Command{
		Use: "servers", Short: "List the servers", Args: cobra.NoArgs, RunE: list,
		Long:    "List the servers, or change which ones there are: see the commands below.",
		Example: "  moult servers\n  moult servers replace s2 --with s4",
	}
	f.register(cmd)
	cmd.AddCommand(&cobra.Command{
		Use: "transfer-leadership", Short: "Let another server lead", Args: cobra.NoArgs,
		Example: "  moult servers transfer-leadership",
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			if err := c.call(cmd.Context(), http.MethodPost, "/api/servers/transfer-leadership", nil, nil); err != nil {
				return err
			}
			return done(cmd, map[string]any{"transferred": true}, "another server leads; see it with: moult servers")
		}),
	})
	cmd.AddCommand(&cobra.Command{
		Use: "verify", Short: "Compare the servers' replicated states", Args: cobra.NoArgs,
		Long: `Compare digests of the servers' replicated states, which are equal on all of them
at the same index.

Exit code 0: all equal. 1: they differ, or could not be compared.`,
		Example: "  moult servers verify",
		RunE:    f.run(func(cmd *cobra.Command, c *client, _ []string) error { return verifyServers(cmd, c, f.json) }),
	})
	cmd.AddCommand(newServersRemoveCommand(&f), newServersDemoteCommand(&f), newServersPromoteCommand(&f), newServersReplaceCommand(&f))
	return cmd
}

func newServersRemoveCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Take a server out of the cluster for good", Args: cobra.ExactArgs(1),
		Long: `Take a server out of the Raft group. It is refused when what remains would have no
majority of servers that answer. A server that was removed joins again only as a
new one: with an empty data directory and a new token.`,
		Example: "  moult servers remove s3",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			if _, err := c.changeServer(cmd.Context(), args[0], "remove"); err != nil {
				return err
			}
			return done(cmd, map[string]any{"removed": args[0]}, "removed %s; stop it, and see what remains with: moult servers", printable(args[0]))
		}),
	}
}

func newServersDemoteCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "demote NAME", Short: "Take a server's vote; it keeps following, on standby", Args: cobra.ExactArgs(1),
		Long: `Take a server's vote. It keeps all that is decided, on standby, until it is promoted.
It is refused when what remains would have no majority of voters that answer. A
leader hands leadership over first.`,
		Example: "  moult servers demote s3",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			if _, err := c.changeServer(cmd.Context(), args[0], "demote"); err != nil {
				return err
			}
			return done(cmd, map[string]any{"demoted": args[0]}, "%s is on standby; let it vote again with: moult servers promote %s", printable(args[0]), printable(args[0]))
		}),
	}
}

func newServersPromoteCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "promote NAME", Short: "Let a server on standby vote, once it has caught up", Args: cobra.ExactArgs(1),
		Long: `Let a server on standby vote again, and wait until it does. The leader makes it a
voter when it has caught up, and not before: a voter that does not answer would cost
the majority. A server that joined becomes a voter by itself in the same way.`,
		Example: "  moult servers promote s3",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			s, err := c.changeServer(cmd.Context(), args[0], "promote")
			if err != nil {
				return err
			}
			if err := c.awaitVoter(cmd.Context(), s.ID); err != nil {
				return err
			}
			return done(cmd, map[string]any{"promoted": args[0]}, "%s votes", printable(args[0]))
		}),
	}
}

func newServersReplaceCommand(f *clientFlags) *cobra.Command {
	var with string
	cmd := &cobra.Command{
		Use: "replace OLD --with NEW", Short: "Remove a server when another one that joined votes in its stead", Args: cobra.ExactArgs(1),
		Long: `Wait until a server that joined votes and is healthy, then remove the old one. The old
one may be up or gone. NEW joins as any server does: moult token create --role server.
It may bear the old one's name only when the old one is removed first.`,
		Example: "  moult servers replace s2 --with s4",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			if with == "" {
				return errors.New("--with is missing; give the name of the server that comes in, which has joined with a token of: moult token create --role server")
			}
			if _, err := c.server(cmd.Context(), args[0]); err != nil {
				return err
			}
			in, err := c.server(cmd.Context(), with)
			if err != nil {
				return fmt.Errorf("--with: %w", err)
			}
			if in.Name == args[0] || in.ID == args[0] {
				return errors.New("--with names the server that is to go; give another one")
			}
			if in.Standby {
				return fmt.Errorf("--with: %s is on standby; let it vote first with: moult servers promote %s", printable(in.Name), printable(in.Name))
			}
			if err := c.awaitVoter(cmd.Context(), in.ID); err != nil {
				return err
			}
			if _, err := c.changeServer(cmd.Context(), args[0], "remove"); err != nil {
				return err
			}
			return done(cmd, map[string]any{"removed": args[0], "replaced_by": in.Name}, "%s votes in the stead of %s, which is removed; stop that one", printable(in.Name), printable(args[0]))
		}),
	}
	cmd.Flags().StringVar(&with, "with", "", "name of the server that comes in")
	return cmd
}

// voterPatience is how long a server may take to catch up before a command that
// waits for its vote gives up.
const voterPatience = 2 * time.Minute

// server finds a server by its name or its id.
func (c *client) server(ctx context.Context, name string) (apiServer, error) {
	servers, err := c.servers(ctx)
	if err != nil {
		return apiServer{}, err
	}
	for _, s := range servers {
		if s.Name == name || s.ID == name {
			return s, nil
		}
	}
	return apiServer{}, fmt.Errorf("no server is called %q; `moult servers` lists them", name)
}

// changeServer calls one of the operations on a server.
func (c *client) changeServer(ctx context.Context, name, operation string) (apiServer, error) {
	s, err := c.server(ctx, name)
	if err != nil {
		return s, err
	}
	return s, c.call(ctx, http.MethodPost, "/api/servers/"+url.PathEscape(s.ID)+"/"+operation, nil, nil)
}

// awaitVoter returns when a server votes and is healthy.
func (c *client) awaitVoter(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, voterPatience)
	defer cancel()
	for {
		s, err := c.server(ctx, id)
		if err == nil && s.Voter && s.Healthy {
			return nil
		}
		select {
		case <-time.After(statusInterval):
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("server %s does not vote yet (voter %t, healthy %t); look at its log, and at: moult servers", printable(s.Name), s.Voter, s.Healthy)
			}
			return err
		}
	}
}

// statusInterval is between two looks at a server that is waited for.
const statusInterval = 500 * time.Millisecond
