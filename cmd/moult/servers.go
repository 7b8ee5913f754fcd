package main

import (
	"fmt"
	"net/http"
	"net/url"

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
	cmd := &cobra.Command{Use: "servers", Short: "List the servers", Args: cobra.NoArgs, RunE: list}
	f.register(cmd)
	cmd.AddCommand(&cobra.Command{
		Use: "transfer-leadership", Short: "Let another server lead", Args: cobra.NoArgs,
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			return c.call(cmd.Context(), http.MethodPost, "/api/servers/transfer-leadership", nil, nil)
		}),
	})
	cmd.AddCommand(&cobra.Command{
		Use: "verify", Short: "Compare the servers' replicated states", Args: cobra.NoArgs,
		Long: `Compare digests of the servers' replicated states, which are equal on all of them
at the same index.

Exit code 0: all equal. 1: they differ, or could not be compared.`,
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error { return verifyServers(cmd, c, f.json) }),
	})
	cmd.AddCommand(&cobra.Command{
		Use: "remove NAME", Short: "Take a server out of the cluster for good", Args: cobra.ExactArgs(1),
		Long: `Take a server out of the Raft group. It is refused when what remains would have no
majority of servers that answer. A server that was removed joins again only as a
new one: with an empty data directory and a new token.`,
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			servers, err := c.servers(cmd.Context())
			if err != nil {
				return err
			}
			for _, s := range servers {
				if s.Name != args[0] && s.ID != args[0] {
					continue
				}
				if err := c.call(cmd.Context(), http.MethodPost, "/api/servers/"+url.PathEscape(s.ID)+"/remove", nil, nil); err != nil {
					return err
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "removed %s; stop it, and see what remains with: moult servers\n", printable(s.Name))
				return nil
			}
			return fmt.Errorf("no server is called %q; `moult servers` lists them", args[0])
		}),
	})
	return cmd
}
