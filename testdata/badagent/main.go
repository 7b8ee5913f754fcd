// Command badagent is a release that should never have been made: the
// end-to-end tests publish it and see that one host tries it, goes back to its
// old binary, and no other host is touched. The linker sets mode and version.
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

var (
	version = "dev"
	mode    = "exit"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		if mode == "lie" {
			version = "0.0.1" // found out before the trial
		}
		fmt.Printf("{\"version\":%q,\"commit\":\"bad\"}\n", version)
		return
	}
	switch mode {
	case "exit", "lie":
		fmt.Fprintln(os.Stderr, "starting")
		fmt.Fprintln(os.Stderr, "fatal: the frobnicator is missing")
		os.Exit(3)
	case "hang":
		fmt.Fprintln(os.Stderr, "waiting for a frobnicator that never comes")
		time.Sleep(time.Hour)
	case "mute": // alive and busy, but no member of the mesh
		for i := 0; ; i++ {
			fmt.Fprintf(os.Stderr, "no peer answers, attempt %d\n", i)
			time.Sleep(200 * time.Millisecond)
		}
	case "impostor": // claims the release's version, then runs the old binary
		if err := syscall.Exec(installed(), os.Args, os.Environ()); err != nil {
			fmt.Fprintln(os.Stderr, "fatal:", err)
			os.Exit(4)
		}
	default:
		fmt.Fprintf(os.Stderr, "fatal: no such mode: %q\n", mode)
		os.Exit(5)
	}
}

// installed is the path that --binary names on the agent's command line.
func installed() string {
	for i, a := range os.Args[:len(os.Args)-1] {
		if a == "--binary" {
			return os.Args[i+1]
		}
	}
	return os.Args[0]
}
