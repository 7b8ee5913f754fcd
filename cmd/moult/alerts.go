package main

import (
	"net/http"

	"github.com/spf13/cobra"
)

func newAlertsCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "alerts", Short: "List the alerts", Args: cobra.NoArgs,
		Example: "  moult alerts\n  moult alerts --json",
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			var out apiAlerts
			if err := c.call(cmd.Context(), http.MethodGet, "/api/alerts", nil, &out); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			var rows [][]string
			for _, a := range out.Alerts {
				rows = append(rows, []string{a.ID, a.Status, a.Kind, ago(a.OpenedAt), printable(a.Message)})
			}
			return printTable(cmd.OutOrStdout(), []string{"ID", "STATUS", "KIND", "OPENED", "MESSAGE"}, rows)
		}),
	}
	f.register(cmd)
	cmd.AddCommand(&cobra.Command{
		Use: "acknowledge ID", Short: "Close an alert", Args: cobra.ExactArgs(1),
		Long:    "Close an alert by hand. `moult alerts` shows the ids. What is still wrong opens a new one.",
		Example: "  moult alerts acknowledge 0b5b1c1e-5f5c-4f0e-9a55-0a4f2f2f7c11",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			if err := c.call(cmd.Context(), http.MethodPost, "/api/alerts/"+args[0]+"/acknowledge", nil, nil); err != nil {
				return err
			}
			return done(cmd, map[string]any{"acknowledged": args[0]}, "acknowledged; what is left: moult alerts")
		}),
	})
	return cmd
}
