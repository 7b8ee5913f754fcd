//go:build !windows

package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"moult/updater/install"
)

// start runs the command line of this process.
func start(ctx context.Context, args []string) int {
	return run(ctx, args, os.Stdin, os.Stdout, os.Stderr)
}

// serviceCommands are for Windows' service manager.
func serviceCommands() []*cobra.Command { return nil }

// restartBy is for systems on which a process cannot become another program.
func restartBy(context.Context, string, string) func(install.Marker) error { return nil }
