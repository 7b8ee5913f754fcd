package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

type apiUser struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Role      string    `json:"role"`
	CreatedAt time.Time `json:"created_at"`
	// MustChange: the password is somebody else's choice, and to be changed at the next sign-in.
	MustChange bool `json:"must_change_password"`
}

func newUserCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "user", Short: "Let people in, and say what they may do",
		Long: `Let people in, and say what they may do: an admin everything; an operator may also
acknowledge alerts, pause and resume; a viewer looks. Passwords are typed, or read
from standard input where that is no terminal; they are never arguments. Whoever
signs in with a password that was typed here chooses another one first; where a
script sets it, only with --must-change.`,
		Example: "  moult user add alice --role operator\n  moult user password alice\n  moult user role alice admin",
	}
	f.register(cmd)

	var role string
	var mustChange bool
	// A person's choice is for the first sign-in; a script may be the user itself.
	first := func(cmd *cobra.Command) bool { return mustChange || onTerminal(cmd) }
	add := &cobra.Command{
		Use: "add NAME", Short: "Add a user", Args: cobra.ExactArgs(1),
		Example: "  moult user add alice --role operator\n  moult user add robot --role viewer < password.txt",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			password, err := readNewPassword(cmd)
			if err != nil {
				return err
			}
			in := map[string]any{"name": args[0], "role": role, "password": password, "must_change_password": first(cmd)}
			var out apiUser
			if err := c.call(cmd.Context(), http.MethodPost, "/api/users", in, &out); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			then := ""
			if out.MustChange {
				then = ", and has to choose another password then"
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s can sign in as %s%s\n", printable(out.Name), out.Role, then)
			return nil
		}),
	}
	const mustChangeHelp = "the user has to choose another password at the next sign-in (a password that is typed: always)"
	add.Flags().BoolVar(&mustChange, "must-change", false, mustChangeHelp)
	add.Flags().StringVar(&role, "role", "viewer", "admin, operator or viewer")

	list := &cobra.Command{
		Use: "list", Short: "List the users", Args: cobra.NoArgs,
		Example: "  moult user list",
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			users, err := c.users(cmd.Context())
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"users": users})
			}
			var rows [][]string
			for _, u := range users {
				rows = append(rows, []string{printable(u.Name), u.Role, u.CreatedAt.Local().Format(time.DateOnly), yesOrDash(u.MustChange)})
			}
			return printTable(cmd.OutOrStdout(), []string{"NAME", "ROLE", "SINCE", "MUST CHANGE PASSWORD"}, rows)
		}),
	}

	password := &cobra.Command{
		Use: "password NAME", Short: "Set a user's password; it ends the user's sessions", Args: cobra.ExactArgs(1),
		Example: "  moult user password alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readNewPassword(cmd)
			if err != nil {
				return err
			}
			return changeUser(cmd, &f, args[0], http.MethodPatch, map[string]any{"password": text, "must_change_password": first(cmd)})
		},
	}
	password.Flags().BoolVar(&mustChange, "must-change", false, mustChangeHelp)
	setRole := &cobra.Command{
		Use: "role NAME ROLE", Short: "Set a user's role; it ends the user's sessions", Args: cobra.ExactArgs(2),
		Example: "  moult user role alice admin",
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeUser(cmd, &f, args[0], http.MethodPatch, map[string]any{"role": args[1]})
		},
	}
	remove := &cobra.Command{
		Use: "remove NAME", Short: "Remove a user", Args: cobra.ExactArgs(1),
		Example: "  moult user remove alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeUser(cmd, &f, args[0], http.MethodDelete, nil)
		},
	}
	cmd.AddCommand(add, list, password, setRole, remove)
	return cmd
}

func (c *client) users(ctx context.Context) ([]apiUser, error) {
	var out struct{ Users []apiUser }
	err := c.call(ctx, http.MethodGet, "/api/users", nil, &out)
	return out.Users, err
}

// changeUser finds a user by name and sends the change.
func changeUser(cmd *cobra.Command, f *clientFlags, name, method string, in any) error {
	c, err := f.client()
	if err != nil {
		return err
	}
	users, err := c.users(cmd.Context())
	if err != nil {
		return err
	}
	for _, u := range users {
		if u.Name == name || u.ID == name {
			if err := c.call(cmd.Context(), method, "/api/users/"+url.PathEscape(u.ID), in, nil); err != nil {
				return err
			}
			return done(cmd, map[string]any{"user": u.Name, "done": true}, "done; see it with: moult user list")
		}
	}
	return fmt.Errorf("no user is called %q; `moult user list` lists them", name)
}
