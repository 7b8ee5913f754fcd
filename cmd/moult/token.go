package main

import (
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

func newTokenCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "token", Short: "Let hosts join",
		Example: "  moult token create\n  moult token create --role server",
	}
	f.register(cmd)
	var role, segment, relay string
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create",
		Short: "Make a join token and print the whole join command",
		Long:  "Make a join token. It lets one host in, once, until it expires. Prints the command to run on that host.",
		Example: `  moult token create
  moult token create --role server
  moult token create --segment dmz --ttl 1h
  moult token create --segment dmz --relay relay-1`,
		Args: cobra.NoArgs,
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			var out struct {
				ID        string    `json:"id"`
				Token     string    `json:"token"`
				Command   string    `json:"command"`
				ExpiresAt time.Time `json:"expires_at"`
			}
			in := map[string]any{"role": role, "segment": segment, "ttl": ttl.String(), "relay": relay}
			if err := c.call(cmd.Context(), http.MethodPost, "/api/join-tokens", in, &out); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Works once, until %s. Run on the new host:\n", out.ExpiresAt.Local().Format("15:04:05 on 2 Jan"))
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), out.Command); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "As a service that starts with the machine: `moult install %s` in the place of `moult %s`, as root.\n", role, role)
			return nil
		}),
	}
	create.Flags().StringVar(&role, "role", "agent", "agent or server")
	create.Flags().StringVar(&segment, "segment", "default", "segment of the new host")
	create.Flags().StringVar(&relay, "relay", "", "name of a relay of that segment, for a host that reaches no server")
	create.Flags().DurationVar(&ttl, "ttl", 15*time.Minute, "how long it can be used")
	cmd.AddCommand(create)
	return cmd
}
