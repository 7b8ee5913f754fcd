package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
)

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Print, check and reload configuration files",
		Long: `Print, check and reload configuration files. A file is TOML; its keys are the flags
of the command that reads it by --config, with _ for -.`,
		Example: `  moult config example agent > agent.toml
  moult config check agent.toml
  moult config reload --data /var/lib/moult`,
	}
	cmd.AddCommand(newConfigExampleCommand(), newConfigCheckCommand(), newConfigReloadCommand())
	return cmd
}

func newConfigExampleCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "example ROLE", Short: "Print a commented configuration file for an agent, a server or a client",
		Long: `Print a configuration file for a role (agent, server or client) with all its keys and
what they are for. What is commented out shows the default, or an example where there
is none. It is made from the flags of this very binary.`,
		Example: `  moult config example agent > /etc/moult/agent.toml
  moult config example server > /etc/moult/server.toml
  moult config example client > ~/moult.toml`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: configRoles,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkConfigRole(args[0]); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"role": args[0], "keys": configKeys(args[0])})
			}
			_, err := io.WriteString(cmd.OutOrStdout(), exampleConfig(args[0], nil))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: the keys, their types and defaults")
	return cmd
}

func newConfigCheckCommand() *cobra.Command {
	var role string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check FILE", Short: "Check a configuration file as a start would, and show all that is wrong",
		Long: `Check a configuration file as a start would: its syntax, its keys, and the values by
their limits. All that is wrong is shown at once, each with its place. Flags and
environment are left out of it.

Without --role the file is taken to be the role's that most of its keys belong to.

Exit code 0: the file is good. 1: it is not.`,
		Example: `  moult config check /etc/moult/agent.toml
  moult config check --role server /etc/moult/server.toml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := readSettings(args[0])
			if err != nil {
				return err
			}
			if role == "" {
				role = likelyRole(file)
			}
			if err := checkConfigRole(role); err != nil {
				return fmt.Errorf("--role: %w", err)
			}
			problems := file.check(role)
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), configReport(role, problems))
			} else {
				err = printConfigReport(cmd.OutOrStdout(), args[0], role, file, problems)
			}
			if err == nil && len(problems) > 0 {
				return &exitError{code: 1}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "agent, server or client (default: by the keys)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

type configProblem struct {
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Message string `json:"message"`
}

func configReport(role string, problems []error) map[string]any {
	list := []configProblem{}
	for _, err := range problems {
		p := configProblem{Message: err.Error()}
		if at, ok := err.(*settingError); ok { //nolint:errorlint // they are not wrapped
			p = configProblem{at.at.line, at.at.column, at.message}
		}
		list = append(list, p)
	}
	return map[string]any{"role": role, "ok": len(list) == 0, "problems": list}
}

func printConfigReport(w io.Writer, path, role string, file *settingsFile, problems []error) error {
	for _, err := range problems {
		fmt.Fprintln(w, err)
	}
	word := "keys"
	if len(file.settings) == 1 {
		word = "key"
	}
	if len(problems) == 0 {
		_, err := fmt.Fprintf(w, "%s is good for: moult %s (%d %s set)\n", path, roleCommand(role), len(file.settings), word)
		return err
	}
	word = "problems"
	if len(problems) == 1 {
		word = "problem"
	}
	_, err := fmt.Fprintf(w, "%d %s, read as the file of: moult %s\n", len(problems), word, roleCommand(role))
	return err
}

// configRoles are what a configuration file can be for.
const roleClient = "client" // beside roleAgent and roleServer

var configRoles = []string{roleAgent, roleServer, roleClient}

func checkConfigRole(role string) error {
	if role != roleAgent && role != roleServer && role != roleClient {
		return fmt.Errorf("%q is no role; give %s", role, strings.Join(configRoles, ", "))
	}
	return nil
}

func roleCommand(role string) string {
	if role == roleClient {
		return "hosts, and what else asks the cluster"
	}
	return role
}

// exampleOf is what the first line of an example says.
var exampleOf = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^# moult (agent|server|hosts) --config`)
})

// likelyRole is the role that the file's first line names, else the one that knows
// most of its keys; of equals the first.
func likelyRole(file *settingsFile) string {
	if m := exampleOf().FindStringSubmatch(file.lines[0]); m != nil {
		return strings.Replace(m[1], "hosts", roleClient, 1)
	}
	best, most := roleAgent, -1
	for _, role := range configRoles {
		cmd, _ := commandOfRole(role)
		n := 0
		for _, s := range file.settings {
			if cmd.Flags().Lookup(flagOf(s.key)) != nil {
				n++
			}
		}
		if n > most {
			best, most = role, n
		}
	}
	return best
}

// commandOfRole is the command that reads a role's file, and the check of what it
// has read.
func commandOfRole(role string) (cmd *cobra.Command, validate func() error) {
	switch role {
	case roleAgent:
		o := new(nodekit.AgentOptions)
		cmd, validate = agentCommand(o), o.Validate
	case roleServer:
		o := new(serverOptions)
		cmd, validate = serverCommand(o), o.validate
	default:
		f := new(clientFlags)
		cmd = &cobra.Command{Use: roleClient}
		f.register(cmd)
		validate = func() error { _, err := f.client(); return err }
	}
	cmd.Flags().AddFlagSet(cmd.PersistentFlags())
	return cmd, validate
}

// check is all that a start would refuse the file for.
func (f *settingsFile) check(role string) []error {
	cmd, validate := commandOfRole(role)
	f.refuseUnknown(flagNames(cmd))
	for _, s := range f.settings {
		if flag := cmd.Flags().Lookup(flagOf(s.key)); flag != nil && s.key == keyOf(flag.Name) {
			f.set(cmd.Flags(), flag)
		}
	}
	var elsewhere []error // of nothing in the file, such as a name that this machine lacks
	for _, err := range parts(validate()) {
		if !f.blame(cmd.Flags(), err) {
			elsewhere = append(elsewhere, fmt.Errorf("%s: %w", f.path, err))
		}
	}
	return append(parts(f.err()), elsewhere...)
}
