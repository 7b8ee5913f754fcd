// Command bareagent is what an agent is measured against: the smallest program
// that gossips with memberlist, at its stock settings, and listens with TLS. It does
// no more. With -members it is a whole pool of them in one process, with one listener.
// It prints "up ADDRESS" when it is, the address being the first member's.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/memberlist"
)

func main() {
	members := flag.Int("members", 1, "members in this process")
	join := flag.String("join", "", "address of a member to join")
	flag.Parse()
	fmt.Fprintln(os.Stderr, run(*members, *join)) // it ends only by an error
	os.Exit(1)
}

func run(members int, join string) error {
	var first string
	for i := range members {
		config := memberlist.DefaultLANConfig()
		config.Name, config.BindAddr, config.BindPort = fmt.Sprintf("bare-%d-%d", os.Getpid(), i), "127.0.0.1", 0
		config.LogOutput = io.Discard
		list, err := memberlist.Create(config)
		if err != nil {
			return err
		}
		if i == 0 {
			first = list.LocalNode().Address()
		}
		if join == "" {
			join = first
			continue
		}
		if _, err := list.Join([]string{join}); err != nil {
			return err
		}
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: make([]tls.Certificate, 1), MinVersion: tls.VersionTLS13})
	if err != nil {
		return err
	}
	fmt.Println("up", first)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		conn.Close()
	}
}
