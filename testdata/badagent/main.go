// Command badagent is a release that should never have been made: the
// end-to-end tests publish it and see that one host tries it, goes back to its
// old binary, and no other host is touched. The linker sets mode and version.
package main

import (
	"fmt"
	"os"
	"time"
)

var (
	version = "dev"
	mode    = "exit" // exit, hang or lie
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		if mode == "lie" {
			version = "0.0.1"
		}
		fmt.Printf("{\"version\":%q,\"commit\":\"bad\"}\n", version)
		return
	}
	switch mode {
	case "exit":
		fmt.Fprintln(os.Stderr, "starting")
		fmt.Fprintln(os.Stderr, "fatal: the frobnicator is missing")
		os.Exit(3)
	default:
		fmt.Fprintln(os.Stderr, "waiting for a frobnicator that never comes")
		time.Sleep(time.Hour)
	}
}
