// Package agent lets a program join a moult cluster and update itself.
//
// Main is the program's main: it joins the mesh at the first start, runs the
// program's work, takes the releases that the cluster's admins order from its
// peers, tries each beside the installed one and takes it back when it does not
// prove itself. docs/your-own-program.md is the guide, testdata/greeter the example;
// DESIGN.md says why it is as it is.
//
// # Processes
//
// What a service manager starts is a small supervisor. It starts the same program
// again with the same arguments, and in that child Main runs the agent and work:
//
//	supervisor ── child: agent + work(ctx)
//
// After a commit the supervisor becomes the new program and keeps its process id
// (Unix). Whatever comes before Main runs in both, so it should be quick, open no
// ports and hold no locks.
//
// # The command `version`
//
// A release is the program itself, made by `moult release create` like moult's own.
// Before its trial a host asks it, and Main answers: PROGRAM version --json has to
// print {"version": V} with the release's version. Options.Version is that V.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
	"moult/updater"
)

// Options say what the program is and which cluster it belongs to. Empty fields
// have the defaults of `moult agent`, whose flags they are; its help describes them.
type Options struct {
	// Version is the program's, as its releases are called: set it by the linker.
	Version string
	// Number is the number of the release, where the build knows it.
	Number uint64

	Data        string   // data directory, this host's alone; /var/lib/moult
	Name        string   // of this host, unique in the cluster; its host name
	Join        []string // node ports of servers or relays
	TokenFile   string   // holds the join token, which only the first start needs
	Segment     string   // "": the token's
	AlsoSegment []string // SEGMENT=GOSSIP_ADDRESS; with any, the host is a relay
	Gossip      string   // address of the gossip; 0.0.0.0:7946
	Peer        string   // node port; 0.0.0.0:7947
	Advertise   string   // IP address that others reach this host at; found out
	AllowFrom   []string // networks that may reach the two ports; all
	InstallTo   string   // auto, installed or data

	Soak         time.Duration // how long a new version has to stay well; 5 s, negative: no longer than it takes to join
	TrialTimeout time.Duration // until a new version has proved itself, or is taken back; 60 s
	TrialStarts  int           // failed starts after which it is taken back; 3

	// Ready, if it is not nil, is closed by work when the program does what it is
	// for. A new version is not committed before.
	Ready <-chan struct{}
}

// Main runs the program and ends the process with its exit code. work is what the
// program is for; it returns soon after ctx ends. When it returns before, the
// process is started again, after a delay that doubles; on trial that counts as a
// failed start. SIGTERM and SIGINT end ctx.
func Main(o Options, work func(ctx context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := Run(ctx, o, work, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Run is Main for a program that wants to end by itself: it returns the exit code,
// which must be the process's. args are the process's arguments; logs and what the
// child prints go to stderr.
func Run(ctx context.Context, o Options, work func(ctx context.Context) error, args []string, stdout, stderr io.Writer) (code int) {
	logs := &gate{to: stderr}
	err := o.check()
	if err == nil && len(args) > 0 && args[0] == "version" {
		err = o.printVersion(stdout)
	} else if err == nil {
		err = o.run(ctx, work, stdout, logs)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, updater.ErrRestart):
		return updater.ExitRestart
	}
	logs.shut() // the reason of a trial's end is the last line
	fmt.Fprintf(stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
	return 1
}

func (o Options) check() error {
	if o.Version == "" {
		return errors.New("agent: Options.Version is empty; give the version that the program was built as, by go build -ldflags '-X main.version=1.0.0'")
	}
	return nil
}

// printVersion answers what a host asks a release before it tries it.
func (o Options) printVersion(w io.Writer) error {
	return json.NewEncoder(w).Encode(map[string]string{"version": o.Version})
}

func (o Options) run(ctx context.Context, work func(ctx context.Context) error, stdout, stderr io.Writer) error {
	node, err := o.node()
	if err != nil {
		return err
	}
	node.Work, node.Ready = work, o.Ready
	return nodekit.RunAgent(ctx, node, stdout, stderr)
}

// node are the options of an agent, which have their defaults as flags.
func (o Options) node() (n nodekit.AgentOptions, err error) {
	flags := &cobra.Command{}
	n.RegisterFlags(flags)
	n.Build = nodekit.BuildInfo{Version: o.Version, Number: o.Number}
	n.Join, n.TokenFile, n.Segment, n.AlsoFlags, n.Advertise, n.AllowFrom = o.Join, o.TokenFile, o.Segment, o.AlsoSegment, o.Advertise, o.AllowFrom
	set(&n.Data, o.Data)
	set(&n.Name, o.Name)
	set(&n.Gossip, o.Gossip)
	set(&n.Peer, o.Peer)
	set(&n.Trial.Place, o.InstallTo)
	if set(&n.Trial.Soak, o.Soak); o.Soak < 0 {
		n.Trial.Soak = 0
	}
	set(&n.Trial.Timeout, o.TrialTimeout)
	set(&n.Trial.Starts, o.TrialStarts)
	return n, n.Validate()
}

// set sets what is not left empty.
func set[T comparable](field *T, value T) {
	var empty T
	if value != empty {
		*field = value
	}
}
