// Command moult is the whole of moult: the agent that every host runs, the
// server, and the client that talks to them. `moult help` lists the commands.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Set by the linker: see the Makefile.
var (
	version = "dev"
	commit  = "unknown"
	number  = "" // of the release, where the build knows it
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
