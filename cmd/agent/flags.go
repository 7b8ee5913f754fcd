package agent

import (
	"flag"
	"strings"
	"time"
)

// Flags registers flags of the options that differ from host to host, with their
// names of `moult agent`: data, name, join, token-file, gossip, peer, advertise,
// segment, install-to and soak.
func (o *Options) Flags(f *flag.FlagSet) {
	f.StringVar(&o.Data, "data", o.Data, "data directory of the agent (default /var/lib/moult)")
	f.StringVar(&o.Name, "name", o.Name, "name of this host, unique in the cluster (default: its host name)")
	f.Func("join", "node port of a server, or of a relay, to join through; may be repeated", func(text string) error {
		o.Join = append(o.Join, strings.Split(text, ",")...)
		return nil
	})
	f.StringVar(&o.TokenFile, "token-file", o.TokenFile, "file that holds the join token, for the first start")
	f.StringVar(&o.Gossip, "gossip", o.Gossip, "gossip address (default 0.0.0.0:7946)")
	f.StringVar(&o.Peer, "peer", o.Peer, "node port (default 0.0.0.0:7947)")
	f.StringVar(&o.Advertise, "advertise", o.Advertise, "IP address that others reach this host at (default: found out)")
	f.StringVar(&o.Segment, "segment", o.Segment, "segment of this host (default: the token's)")
	f.StringVar(&o.InstallTo, "install-to", o.InstallTo, "where updates go: auto, installed or data (default auto)")
	f.Func("soak", "how long a new version has to stay well before it is kept; 0: no longer than it takes to join (default 5s)", func(text string) (err error) {
		if o.Soak, err = time.ParseDuration(text); err == nil && o.Soak == 0 {
			o.Soak = -1 // left empty it would be the default
		}
		return err
	})
}
