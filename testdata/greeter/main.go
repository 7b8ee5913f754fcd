// Command greeter is a daemon that answers HTTP and keeps itself up to date.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"

	"moult/cmd/agent"
)

var version, greeting = "dev", "hello" // set by the linker

func main() {
	o := agent.Options{Version: version}
	o.Flags(flag.CommandLine)
	listen := flag.String("listen", "127.0.0.1:8080", "address of the greetings")
	flag.Parse()
	agent.Main(o, func(ctx context.Context) error {
		if greeting == "" {
			return fmt.Errorf("version %s has no greeting", version)
		}
		s := &http.Server{Addr: *listen, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, greeting, "from", version) })}
		context.AfterFunc(ctx, func() { s.Close() })
		return s.ListenAndServe()
	})
}
