package nodekit

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"moult/consensus/fleet"
	"moult/mesh"
	"moult/mesh/identity"
)

// AlsoSegment is a segment that this host is in besides its home.
type AlsoSegment struct {
	Name   string
	Listen string // gossip address
	Adv    string // computed: what the members of that segment dial
}

// ReadSegments takes the --also-segment flags apart.
func (o *NodeOptions) ReadSegments() error {
	o.Also = nil
	if len(o.AlsoFlags) > mesh.MaxSegments-1 {
		return fmt.Errorf("--also-segment is given %d times; a host is in %d segments at most, its home included", len(o.AlsoFlags), mesh.MaxSegments)
	}
	var errs []error
	taken := []string{o.Gossip}
	for _, text := range o.AlsoFlags {
		name, addr, _ := strings.Cut(text, "=")
		err := checkSegmentFlag(name, addr, taken)
		if slices.ContainsFunc(o.Also, func(s AlsoSegment) bool { return s.Name == name }) {
			err = errors.New("the segment is given twice")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--also-segment %q: %w", text, err))
			continue
		}
		taken = append(taken, addr)
		o.Also = append(o.Also, AlsoSegment{Name: name, Listen: addr})
	}
	return errors.Join(errs...)
}

func checkSegmentFlag(name, addr string, taken []string) error {
	if !fleet.ValidName(name) || len(name) > fleet.MaxSegmentBytes {
		return fmt.Errorf("give SEGMENT=HOST:PORT, the segment being 1 to %d of a-z A-Z 0-9 . _ -", fleet.MaxSegmentBytes)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New("give SEGMENT=HOST:PORT, where this host gossips in that segment")
	}
	for _, other := range taken {
		otherHost, otherPort, err := net.SplitHostPort(other)
		if err == nil && port == otherPort && port != "0" && (host == otherHost || Unspecified(host) || Unspecified(otherHost)) {
			return fmt.Errorf("%s is listened on already; give this host's address in each segment, by --gossip too, or another port", other)
		}
	}
	return nil
}

// Unspecified tells whether a host to listen on stands for all addresses.
func Unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// CheckReach refuses a node port that the members of a further segment could not
// reach: it is dialed at the address of the gossip there.
func (o *NodeOptions) CheckReach() error {
	host, _, err := net.SplitHostPort(o.Peer)
	if err != nil || Unspecified(host) {
		return nil // the former is told of already
	}
	for _, s := range o.Also {
		if other, _, err := net.SplitHostPort(s.Listen); err == nil && other != host {
			return fmt.Errorf("--peer %s cannot be reached in segment %s, where this host is %s; give --peer 0.0.0.0:PORT, all addresses", o.Peer, s.Name, other)
		}
	}
	return nil
}

// FindSegmentAddresses finds out what the members of further segments dial: on
// the way to one of them, where the flag does not say it.
func (o *NodeOptions) FindSegmentAddresses(creds identity.Credentials) error {
	for i, s := range o.Also {
		known, _ := creds.In(s.Name)
		host, _, err := net.SplitHostPort(s.Listen)
		if err != nil {
			return fmt.Errorf("--also-segment %s=%s: %w", s.Name, s.Listen, err)
		}
		if Unspecified(host) && len(known.GossipJoin) == 0 {
			return fmt.Errorf("--also-segment %s=%s: nobody is known in that segment, so this host's address there cannot be found out; give it instead of %q", s.Name, s.Listen, host)
		}
		if o.Also[i].Adv, err = AdvertisedFor(s.Listen, "", known.GossipJoin); err != nil {
			return fmt.Errorf("--also-segment %s=%s: %w", s.Name, s.Listen, err)
		}
	}
	return nil
}

// SegmentAddrs tells others in which further segments this host is.
func (o *NodeOptions) SegmentAddrs() []identity.SegmentAddr {
	addrs := []identity.SegmentAddr{}
	for _, s := range o.Also {
		addrs = append(addrs, identity.SegmentAddr{Segment: s.Name, GossipAddr: s.Adv})
	}
	return addrs
}

// missingKeys are the segments that this host was started in and has no keys of.
func (o *NodeOptions) missingKeys(creds identity.Credentials) (missing []string) {
	for _, s := range o.Also {
		if _, ok := creds.In(s.Name); !ok {
			missing = append(missing, s.Name)
		}
	}
	return missing
}

// Pools are the segments that the mesh opens, the home segment first.
func (o *NodeOptions) Pools(creds identity.Credentials) ([]mesh.PoolConfig, error) {
	if o.Segment != "" && o.Segment != creds.Segment {
		return nil, fmt.Errorf("--segment is %q, but this host joined segment %q; remove the host and join it again with a token for the other segment", o.Segment, creds.Segment)
	}
	pools := []mesh.PoolConfig{{Segment: creds.Segment, Bind: o.Gossip, Advertise: o.GossipAdv, Keys: creds.GossipKeys, Join: creds.GossipJoin, Allow: o.Allowed(o.GossipAdv)}}
	for _, s := range o.Also {
		known, ok := creds.In(s.Name)
		switch {
		case s.Name == creds.Segment:
			return nil, fmt.Errorf("--also-segment %s=%s: that is this host's home segment; leave it out", s.Name, s.Listen)
		case !ok:
			return nil, fmt.Errorf("--also-segment %s=%s: this host has no key of that segment", s.Name, s.Listen)
		}
		pools = append(pools, mesh.PoolConfig{Segment: s.Name, Bind: s.Listen, Advertise: s.Adv, Keys: known.GossipKeys, Join: known.GossipJoin, Allow: o.Allowed(s.Adv)})
	}
	return pools, nil
}
