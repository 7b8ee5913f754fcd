package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
	"moult/updater/install"
)

// run executes one command line and returns its exit code: stdout is data,
// stderr is progress and errors.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := rootCommandFor(args)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return execute(ctx, root, args, stderr)
}

// execute runs a command and tells its error, also that of a panic.
func execute(ctx context.Context, root *cobra.Command, args []string, stderr io.Writer) (code int) {
	defer func() {
		if r := recover(); r != nil {
			code = tellPanic(stderr, args, r)
		}
	}()
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	priority := ""
	if nodekit.StderrIsJournal(stderr) {
		priority = nodekit.PriorityError
	}
	var exit *exitError
	code = exitFailed
	switch {
	case errors.As(err, &exit):
		code = exit.code
		if exit.err == nil {
			return code
		}
		err = exit.err
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		if runsUntilStopped(cmd) {
			return exitOK // as it was asked to
		}
		code, err = exitInterrupted, errors.New("interrupted")
	}
	tellError(cmd, stderr, priority, err)
	return code
}

// runsUntilStopped tells a command that ends well when it is told to.
func runsUntilStopped(cmd *cobra.Command) bool {
	switch cmd.CommandPath() {
	case "moult server", "moult agent", "moult dev":
		return true
	}
	return false
}

// tellError prints an error, as JSON where the command was asked for that.
func tellError(cmd *cobra.Command, stderr io.Writer, priority string, err error) {
	if !asJSON(cmd) {
		fmt.Fprintf(stderr, "%smoult: %v\n", priority, err)
		return
	}
	code := "failed"
	var api *apiError
	switch {
	case errors.As(err, &api):
		code = api.Code
	case errors.Is(err, errUnreachable):
		code = "unreachable"
	}
	enc := json.NewEncoder(stderr)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(map[string]any{"error": map[string]string{"code": code, "message": err.Error()}}) // nobody reads it if this errs
}

// rootCommandFor returns the root with what a command line needs of it. An agent and
// its supervisor run for months: they do without the other commands, and the half
// megabyte that these take in each of them.
func rootCommandFor(args []string) *cobra.Command {
	if len(args) == 0 || args[0] != agentCommandName {
		return newRootCommand()
	}
	root := newBareRootCommand()
	root.AddCommand(newAgentCommand())
	explainArguments(root)
	return root
}

func newRootCommand() *cobra.Command {
	root := newBareRootCommand()
	root.AddCommand(
		newVersionCommand(), newSBOMCommand(), newDevCommand(), newServerCommand(), newAgentCommand(),
		newTokenCommand(), newKeyCommand(), newReleaseCommand(),
		newHostsCommand(), newHostCommand(), newGossipCommand(), newCACommand(), newFleetCommand(), newJobCommand(),
		newAlertsCommand(), newServersCommand(), newUserCommand(), newStatusCommand(), newDoctorCommand(), newConfigCommand(),
		newInstallCommand(), newUninstallCommand(),
	)
	root.AddCommand(serviceCommands()...)
	explainArguments(root)
	completeFromCluster(root)
	return root
}

func newBareRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "moult",
		Short: "Keep a fleet of agents up to date, from peer to peer",
		Long: `moult keeps a fleet of agents up to date without a download server in the middle.

  Try it:            moult dev
  Add a host:        moult token create            (prints the join command)
  Release a binary:  moult release create … && moult release publish DIR
  Update the fleet:  moult fleet update && moult fleet watch

Client commands find the cluster by --addr or MOULT_ADDR (several addresses,
separated by commas, are tried in turn) and sign in by MOULT_TOKEN or --token-file.
Each flag can also be set as MOULT_FLAG_NAME in the environment or as flag_name
in the TOML file that --config names; the flag wins, then the environment.

Exit codes: 0 done; 1 failed, and stderr says why and what to do (status: degraded;
doctor: something failed); 2 of status: no server answers; 70 a bug in moult;
130 interrupted. With --json the error on stderr is JSON, too.`,
		Example: `  moult dev                        # a whole cluster on this machine, to try
  moult hosts --behind             # who runs an old version
  moult fleet update --watch       # bring them to the newest release
  moult help fleet                 # more about a command`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if strings.HasPrefix(cmd.Name(), cobra.ShellCompRequestCmd) {
				return nil // whoever presses Tab gets no errors; see offer
			}
			return loadSettings(cmd)
		},
	}
	root.PersistentFlags().String("config", "", "TOML file with settings (also MOULT_CONFIG)")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	})
	return root
}

// explainArguments has a command that got too many or too few arguments, or one
// it does not know, tell what it takes.
func explainArguments(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil && cmd.HasSubCommands() {
		check = cobra.NoArgs // cobra's own words for an unknown command
	}
	if check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err != nil && cmd.HasSubCommands() {
				return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
			}
			if err != nil {
				return fmt.Errorf("%w; usage: %s", err, cmd.UseLine())
			}
			return nil
		}
	}
	if cmd.Run == nil && cmd.RunE == nil {
		// Not a bare help text with exit code 0 where a mistyped command is meant.
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	for _, c := range cmd.Commands() {
		explainArguments(c)
	}
}

func newVersionCommand() *cobra.Command {
	var asJSON bool
	var data string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary, and of the one it hands over to",
		Long: `Print the version of this binary. Where an agent or server on this host was updated
into its data directory, because a package manager owns this binary, also the
version that runs there in its place, if this user may read that.`,
		Example: "  moult version\n  moult version --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printVersion(cmd.OutOrStdout(), data, asJSON)
		},
	}
	cmd.Flags().StringVar(&data, "data", nodekit.DefaultDataDir, "data directory to look into")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printVersion also runs as the self test of a staged binary: nothing it may come
// across in the data directory is an error.
func printVersion(w io.Writer, data string, asJSON bool) error {
	answer := struct {
		Version string         `json:"version"`
		Commit  string         `json:"commit"`
		Number  string         `json:"number,omitempty"` // of the release, where the build knows it
		Active  *activeVersion `json:"active,omitempty"`
	}{Version: version, Commit: commit, Number: number}
	if a, err := install.LoadActive(data); err == nil {
		answer.Active = &activeVersion{a.Version, install.ActivePath(data, a.Digest)}
	}
	if asJSON {
		return printJSON(w, answer)
	}
	text := fmt.Sprintf("moult %s (%s)\n", version, commit)
	if answer.Active != nil {
		text += fmt.Sprintf("hands over to %s in %s\n", answer.Active.Version, answer.Active.Path)
	}
	_, err := io.WriteString(w, text)
	return err
}

// activeVersion is the binary that runs in this one's place.
type activeVersion struct {
	Version string `json:"version"`
	Path    string `json:"path"`
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
