package nodekit

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"moult/mesh/identity"
)

// NodeOptions are what a server and an agent have in common.
type NodeOptions struct {
	Build             BuildInfo // of this program
	Data, Name        string
	AnyDataPath       bool
	Gossip, Peer      string
	Advertise         string
	Join              []string
	Token, TokenFile  string
	logJSON, logDebug bool
	Json              bool
	level             *slog.LevelVar // of the log; follows logDebug when settings are reloaded
	// Reread has the configuration read again, and apply take over what can change;
	// nil: there is none to read.
	Reread             func(apply func(NodeOptions), logger *slog.Logger) func() ReloadReport
	logJournal         bool
	Segment            string
	AlsoFlags          []string
	AllowFrom          []string
	Networks           []netip.Prefix // computed from allowFrom
	Also               []AlsoSegment  // computed from alsoFlags
	Serve              ServeLimits
	toward             []string // computed: node ports of servers; the way there gives this host's address
	GossipAdv, PeerAdv string   // computed: what others dial
}

// The addresses that hosts listen on when nothing else is said.
const (
	defaultGossipAddr = "0.0.0.0:7946"
	defaultPeerAddr   = "0.0.0.0:7947"
)

// Register registers the flags that a server and an agent have in common.
func (o *NodeOptions) Register(cmd *cobra.Command) {
	o.RegisterPlace(cmd)
	o.level = new(slog.LevelVar)
	f := cmd.Flags()
	f.StringArrayVar(&o.AlsoFlags, "also-segment", nil, "further segment that this host is in, as SEGMENT=GOSSIP_ADDRESS; it relays between its segments; may be repeated")
	f.StringSliceVar(&o.AllowFrom, "allow-from", nil, "networks, in CIDR notation, that may reach the gossip and node ports; this host's own addresses always may; may be repeated (default: all)")
	f.StringArrayVar(&o.Join, "join", nil, "node port of a server, or of a relay, to join through; may be repeated")
	f.BoolVar(&o.AnyDataPath, "any-data-path", false, "take --data and --binary although others could exchange them by the permissions of their parents")
	f.StringVar(&o.Token, "token", "", "join token (better: --token-file or MOULT_TOKEN, the process list does not show them)")
	f.StringVar(&o.TokenFile, "token-file", "", "file that holds the join token")
	o.Serve.register(f)
	f.BoolVar(&o.logJSON, "log-json", false, "log JSON lines")
	f.BoolVar(&o.logJournal, "log-journal", false, "log lines as systemd's journal takes them: a priority before each, no time (default: where stderr is the journal)")
	f.BoolVar(&o.logDebug, "log-debug", false, "log more")
}

// RegisterPlace registers the flags that say which host this is, and where.
func (o *NodeOptions) RegisterPlace(cmd *cobra.Command) {
	host, _ := os.Hostname()
	f := cmd.Flags()
	f.StringVar(&o.Data, "data", DefaultDataDir, "data directory")
	f.StringVar(&o.Name, "name", host, "name of this host, unique in the cluster (default: the system's host name)")
	f.Lookup("name").DefValue = "" // the documentation is not of the machine that it was made on
	f.StringVar(&o.Gossip, "gossip", defaultGossipAddr, "gossip address (UDP and TCP)")
	f.StringVar(&o.Peer, "peer", defaultPeerAddr, "node port: Raft, artifacts and joining, mutual TLS (TCP)")
	f.StringVar(&o.Advertise, "advertise", "", "IP address that others reach this host at (default: found out)")
}

// Validate tells what is wrong with the options, and computes what follows from them.
func (o *NodeOptions) Validate() error {
	errs := []error{o.ValidatePlace(), o.ReadSegments(), o.CheckReach(), o.ReadNetworks(), o.Serve.Validate()}
	if o.Token != "" && o.TokenFile != "" {
		errs = append(errs, errors.New("--token and --token-file are both given; give one"))
	}
	return errors.Join(errs...)
}

// ReadNetworks takes the --allow-from flags apart.
func (o *NodeOptions) ReadNetworks() error {
	o.Networks = nil
	var errs []error
	for _, text := range o.AllowFrom {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("--allow-from %q: give a network as ADDRESS/BITS, such as 10.1.0.0/16, or one host as 10.1.0.5/32", text))
			continue
		}
		o.Networks = append(o.Networks, n.Masked())
	}
	return errors.Join(errs...)
}

// Allowed are the networks whose members may gossip with this host at an address of
// its own; nil: all.
func (o *NodeOptions) Allowed(own string) (cidrs []string) {
	if len(o.Networks) == 0 {
		return nil
	}
	for _, n := range o.Networks {
		cidrs = append(cidrs, n.String())
	}
	if host, _, err := net.SplitHostPort(own); err == nil {
		if ip, err := netip.ParseAddr(host); err == nil {
			cidrs = append(cidrs, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()).String())
		}
	}
	return cidrs
}

// ValidatePlace is Validate for the flags of RegisterPlace.
func (o *NodeOptions) ValidatePlace() error {
	var errs []error
	if o.Name == "" {
		errs = append(errs, errors.New("--name is empty; give a name that is unique in the cluster"))
	}
	if o.Data == "" {
		errs = append(errs, errors.New("--data is empty; give a directory"))
	}
	for _, a := range []struct{ flag, addr string }{{"--gossip", o.Gossip}, {"--peer", o.Peer}} {
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: give HOST:PORT", a.flag, a.addr))
		}
	}
	return errors.Join(errs...)
}

// FindAddresses finds out what others dial: on the way to where it joins and to
// those that it knows from the last time, unless --advertise says it.
func (o *NodeOptions) FindAddresses(ids *identity.Store) error {
	creds, _ := ids.Load() // an error is told by whoever needs the credentials
	o.toward = slices.Concat(o.Join, creds.GossipJoin, creds.Servers)
	var err error
	if o.GossipAdv, err = o.Advertised(o.Gossip); err != nil {
		return fmt.Errorf("--gossip: %w", err)
	}
	if o.PeerAdv, err = o.Advertised(o.Peer); err != nil {
		return fmt.Errorf("--peer: %w", err)
	}
	return o.FindSegmentAddresses(creds)
}

// Advertised returns the address that others dial for one that we listen on.
func (o *NodeOptions) Advertised(listen string) (string, error) {
	return AdvertisedFor(listen, o.Advertise, o.toward)
}

// AdvertisedFor is ip with the port of listen; without one, what listen says
// itself, and where that stands for all addresses, the one on the way to the first
// host that there is a way to.
func AdvertisedFor(listen, ip string, toward []string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("%q: give HOST:PORT", listen)
	}
	if ip != "" {
		return net.JoinHostPort(ip, port), nil
	}
	if !Unspecified(host) {
		return listen, nil
	}
	if len(toward) == 0 {
		toward = []string{"192.0.2.1:9"} // documentation address: nothing is sent, the kernel only chooses a source
	}
	var errs []error
	for _, addr := range toward {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer conn.Close()
		return net.JoinHostPort(conn.LocalAddr().(*net.UDPAddr).IP.String(), port), nil
	}
	return "", fmt.Errorf("find out this host's address: %w; give it with --advertise", errors.Join(errs...))
}

// checkPorts finds out whether the addresses can be listened on before anything
// is made or a join token is used up. Only then: an agent's supervisor may start
// anew beside its running child, which has them.
func (o *NodeOptions) checkPorts() error {
	peer, err := net.Listen("tcp", o.Peer)
	if err != nil {
		return fmt.Errorf("the node port cannot be listened on: %w; give a free address with --peer", err)
	}
	defer peer.Close()
	if err := checkGossipPort(o.Gossip); err != nil {
		return fmt.Errorf("the gossip port cannot be listened on: %w; give a free address with --gossip", err)
	}
	for _, s := range o.Also {
		if err := checkGossipPort(s.Listen); err != nil {
			return fmt.Errorf("the gossip port of segment %s cannot be listened on: %w; give a free address with --also-segment", s.Name, err)
		}
	}
	return nil
}

func checkGossipPort(addr string) error {
	gossip, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer gossip.Close()
	packets, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	return packets.Close()
}

// JoinTokenFile is where a join token may lie in the data directory: whoever
// prepares a service leaves it there, and joining removes it.
const JoinTokenFile = "join.token"

// JoinToken returns the token given, else the one that was left in the data
// directory, "" when there is none.
func (o *NodeOptions) JoinToken() (string, error) {
	if o.TokenFile == "" && o.Token == "" {
		b, err := os.ReadFile(filepath.Join(o.Data, JoinTokenFile))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("read the join token: %w", err)
		}
		return strings.TrimSpace(string(b)), nil
	}
	if o.TokenFile == "" {
		return strings.TrimSpace(o.Token), nil
	}
	b, err := os.ReadFile(o.TokenFile)
	if err != nil {
		return "", fmt.Errorf("read --token-file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
