package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"moult/cmd/internal/nodekit"
	"moult/mesh/identity"
)

// The roles that a host's service may have; they are the names of their commands too.
const (
	roleAgent  = "agent"
	roleServer = "server"
)

// servicePlan is what `moult install` makes of this host, and `moult uninstall`
// takes away. What it is made of differs by operating system: see
// installSteps, removalSteps and defaultPlaces, one file each.
type servicePlan struct {
	role   string // roleAgent or roleServer
	self   string // this program's file
	binary string // program that the service runs; another file than self is made a copy of it
	data   string // data directory
	config string // TOML file that the service reads
	user   string // account that the service runs as; "": the operating system's own choice

	settings map[string]any    // for the file, by key: bool, string, []string
	keys     map[string][]byte // files to lie beside the configuration, by name: public release keys
	token    string            // join token; "": none
	found    bool              // a server's first start makes a cluster
	start    bool              // enable and start it
	purge    bool              // removal takes data, configuration, program and account too
}

// places are where things are on this operating system when nothing else is said.
type places struct {
	binary, data, config, user string
}

// installStep is one thing to do to the host. Its parts are idempotent.
type installStep struct {
	what string // "write /etc/moult/agent.toml", for people
	// done tells whether the host is like that already; nil: it is done anew each time.
	done func() (bool, error)
	do   func(context.Context) error
}

// What became of a step.
const (
	stepDone  = "done"
	stepWas   = "unchanged"
	stepWould = "would be done"
)

type stepResult struct {
	Step  string `json:"step"`
	State string `json:"state"`
}

type installOptions struct {
	noStart, dryRun, printUnit, printConfig, json bool
	user, configFile                              string
	bootstrap                                     bool // computed
}

func (o *installOptions) register(f *pflag.FlagSet) {
	f.BoolVar(&o.noStart, "no-start", false, "do not enable or start the service")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&o.printUnit, "print-unit", false, "print the service's definition, and do nothing")
	f.BoolVar(&o.printConfig, "print-config", false, "print the configuration that would be made where there is none, and do nothing")
	f.StringVar(&o.user, "service-user", "", "account that the service runs as (default: the operating system's choice)")
	f.StringVar(&o.configFile, "config-file", "", "configuration that the service reads, made if it is not there (default: the role's)")
	f.BoolVar(&o.json, "json", false, "print JSON")
}

// installFlags are of `moult install` itself; all others go into the service's configuration.
var installFlags = []string{"no-start", "dry-run", "print-unit", "print-config", "service-user", "config-file", "json", "config", "help"}

func newInstallCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make this host's agent or server a service that starts with the machine",
		Long: `Make the agent or the server of this host a service: an account, directories, a
configuration, the service's definition; then enable and start it. What is there
already is left alone, so it may be run again, to change a setting too. The flags
are those of "moult agent" and "moult server"; what is given goes into the
configuration.`,
		Example: `  moult install agent --join 10.0.0.1:7947 --token-file token
  moult install server --bootstrap --release-key release.key.pub --http 10.0.0.1:8480
  moult install agent --dry-run`,
	}
	cmd.AddCommand(newInstallAgentCommand(), newInstallServerCommand())
	return cmd
}

func newInstallAgentCommand() *cobra.Command {
	var o nodekit.AgentOptions
	var own installOptions
	cmd := &cobra.Command{
		Use: roleAgent, Short: "Make this host's agent a service", Args: cobra.NoArgs,
		Example: `  MOULT_TOKEN=MOULT1… moult install agent --join 10.0.0.1:7947
  moult install agent --no-start`,
	}
	o.RegisterFlags(cmd)
	own.register(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		program := o.Trial.Binary
		o.Trial.Binary = "" // it need not be there yet
		if err := o.Validate(); err != nil {
			return err
		}
		return own.run(cmd, roleAgent, program, o.NodeOptions, nil)
	}
	return cmd
}

func newInstallServerCommand() *cobra.Command {
	var o serverOptions
	var own installOptions
	cmd := &cobra.Command{
		Use: roleServer, Short: "Make this host's server a service", Args: cobra.NoArgs,
		Example: `  moult install server --bootstrap --release-key release.key.pub
  MOULT_TOKEN=MOULT1… moult install server --join 10.0.0.1:7947`,
	}
	o.registerFlags(cmd)
	own.register(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		program := o.trial.Binary
		o.trial.Binary = "" // it need not be there yet
		if err := o.validate(); err != nil {
			return err
		}
		if o.keepPassword {
			return errors.New("--keep-first-password is for clusters to try out, not for a service; leave it out")
		}
		own.bootstrap = o.bootstrap
		return own.run(cmd, roleServer, program, o.NodeOptions, o.releaseKeyFile)
	}
	return cmd
}

// run makes the plan of what was given and carries it out.
func (o *installOptions) run(cmd *cobra.Command, role, program string, node nodekit.NodeOptions, releaseKeys []string) error {
	p, err := o.plan(cmd, role, program, node, releaseKeys)
	if err != nil {
		return err
	}
	if o.printUnit || o.printConfig {
		text := ""
		if o.printUnit {
			text, err = serviceDefinition(p)
		} else {
			text, err = withSettings(p.config, exampleConfig(p.role, nil), p.settings)
		}
		if err != nil {
			return err
		}
		_, err = io.WriteString(cmd.OutOrStdout(), text)
		return err
	}
	steps, err := installSteps(p)
	if err != nil {
		return err
	}
	return o.carryOut(cmd, steps)
}

func (o *installOptions) plan(cmd *cobra.Command, role, program string, node nodekit.NodeOptions, releaseKeys []string) (servicePlan, error) {
	self, err := ownFile()
	if err != nil {
		return servicePlan{}, err
	}
	at := defaultPlaces(role, self)
	p := servicePlan{role: role, self: self, binary: at.binary, data: at.data, config: at.config, user: at.user, start: !o.noStart, found: o.bootstrap}
	flags := cmd.Flags()
	if o.configFile != "" {
		p.config = o.configFile
	}
	if p.data, err = configuredData(p.config, p.data); err != nil {
		return p, err
	}
	if flags.Changed("data") {
		p.data = node.Data
	}
	if program != "" {
		p.binary = program
	}
	if o.user != "" {
		p.user = o.user
	}
	for what, path := range map[string]*string{"data": &p.data, "binary": &p.binary, "config-file": &p.config} {
		if *path, err = filepath.Abs(*path); err != nil {
			return p, fmt.Errorf("--%s: %w", what, err)
		}
	}
	if node.Token != "" || node.TokenFile != "" { // one that waits in the data directory stays there
		if p.token, err = node.JoinToken(); err != nil {
			return p, err
		}
		if _, err := identity.ParseToken(p.token); err != nil {
			return p, err
		}
	}
	if p.settings, err = changedSettings(flags); err != nil {
		return p, err
	}
	if given := cmd.Flags().Lookup("data"); given.Changed || p.data != given.DefValue {
		p.settings["data"] = p.data
	}
	return p, p.takeKeys(releaseKeys)
}

// configuredData is the data directory that a configuration names, usual where it
// names none. One that cannot be read is an error: the usual one may be somebody
// else's.
func configuredData(config, usual string) (string, error) {
	file, err := readSettings(config)
	if errors.Is(err, fs.ErrNotExist) {
		return usual, nil
	}
	if err == nil {
		err = file.err()
	}
	if err != nil {
		return "", fmt.Errorf("read configuration: %w; mend it, or move it away", err)
	}
	if s, ok := file.find("data"); ok {
		if data, ok := s.content.(string); ok {
			return data, nil
		}
	}
	return usual, nil
}

// ownFile is this program's file, links resolved.
func ownFile() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return self, nil
}

// takeKeys has public release keys lie beside the configuration: where they are now
// the service may not be able to read them.
func (p *servicePlan) takeKeys(files []string) error {
	var paths []string
	p.keys = map[string][]byte{}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("--release-key: %w", err)
		}
		name := filepath.Base(path)
		if strings.Contains(string(text), "secret key") {
			return fmt.Errorf("--release-key %s is a secret key; give the public one, and keep this one away from servers", path)
		}
		if _, twice := p.keys[name]; twice {
			return fmt.Errorf("--release-key: two files are called %s; rename one", name)
		}
		p.keys[name] = text
		paths = append(paths, filepath.Join(filepath.Dir(p.config), name))
	}
	if len(paths) > 0 {
		p.settings["release_key"] = paths
	}
	return nil
}

// notSettings are flags that are about this one start, or have a place of their own.
var notSettings = []string{"token", "token-file", "data", "binary", "release-key", "bootstrap"}

// changedSettings are the flags that were given, as keys of the configuration.
func changedSettings(flags *pflag.FlagSet) (map[string]any, error) {
	settings := map[string]any{}
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if !f.Changed || slices.Contains(installFlags, f.Name) || slices.Contains(notSettings, f.Name) {
			return
		}
		key := strings.ReplaceAll(f.Name, "-", "_")
		switch list, isList := f.Value.(pflag.SliceValue); {
		case isList:
			settings[key] = list.GetSlice()
		case f.Value.Type() == "bool":
			settings[key] = f.Value.String() == "true"
		case f.Name == "tls-cert" || f.Name == "tls-key":
			path, err := filepath.Abs(f.Value.String())
			errs = append(errs, err)
			settings[key] = path
		default:
			settings[key] = f.Value.String()
		}
	})
	return settings, errors.Join(errs...)
}

// carryOut takes the steps in turn and tells of each.
func (o *installOptions) carryOut(cmd *cobra.Command, steps []installStep) error {
	if !o.dryRun {
		if err := mayInstall(); err != nil {
			return err
		}
	}
	results := []stepResult{}
	for _, s := range steps {
		state, err := s.take(cmd.Context(), o.dryRun)
		if err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		results = append(results, stepResult{s.what, state})
		mark := map[string]string{stepDone: "+", stepWas: "=", stepWould: "~"}[state]
		fmt.Fprintf(cmd.ErrOrStderr(), "%s %s\n", mark, s.what)
	}
	if o.json {
		return printJSON(cmd.OutOrStdout(), map[string]any{"steps": results})
	}
	return nil
}

func (s installStep) take(ctx context.Context, dryRun bool) (state string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if s.done != nil {
		switch done, err := s.done(); {
		case err != nil:
			return "", err
		case done:
			return stepWas, nil
		}
	}
	if dryRun {
		return stepWould, nil
	}
	return stepDone, s.do(ctx)
}

func newUninstallCommand() *cobra.Command {
	var own installOptions
	var purge bool
	cmd := &cobra.Command{
		Use:   "uninstall agent|server",
		Short: "Stop and remove the service that moult install made",
		Long: `Stop the service of this host and remove its definition. Data and configuration
stay, so that "moult install" brings the same host back; --purge takes them too,
and the account. A host that is not to come back is to be removed from the cluster
as well: moult host remove NAME.`,
		Example: `  moult uninstall agent
  moult uninstall server --purge`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{roleAgent, roleServer},
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := ownFile()
			if err != nil {
				return err
			}
			at := defaultPlaces(args[0], self)
			p := servicePlan{role: args[0], self: self, binary: at.binary, data: at.data, config: at.config, user: at.user, purge: purge}
			if own.configFile != "" {
				p.config = own.configFile
			}
			if p.data, err = configuredData(p.config, p.data); err != nil {
				return err
			}
			steps, err := removalSteps(p)
			if err != nil {
				return err
			}
			return own.carryOut(cmd, steps)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&purge, "purge", false, "remove the data directory, the configuration and the account too")
	f.BoolVar(&own.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&own.json, "json", false, "print JSON")
	f.StringVar(&own.configFile, "config-file", "", "configuration of the service, if another than the role's")
	return cmd
}
