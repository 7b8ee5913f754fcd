// Command bareagent is what an agent's memory is measured against: the smallest
// program that gossips with memberlist and listens with TLS. It does no more.
package main

import (
	"crypto/tls"
	"fmt"
	"os"

	"github.com/hashicorp/memberlist"
)

func main() {
	config := memberlist.DefaultLocalConfig()
	config.Name, config.BindAddr, config.BindPort = fmt.Sprint("bare-", os.Getpid()), "127.0.0.1", 0
	if _, err := memberlist.Create(config); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: make([]tls.Certificate, 1), MinVersion: tls.VersionTLS13})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("up")
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		conn.Close()
	}
}
