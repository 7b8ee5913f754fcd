package main

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

// alsoSegment is a segment that this host is in besides its home.
type alsoSegment struct {
	name   string
	listen string // gossip address
	adv    string // computed: what the members of that segment dial
}

// readSegments takes the --also-segment flags apart.
func (o *nodeOptions) readSegments() error {
	o.also = nil
	if len(o.alsoFlags) > mesh.MaxSegments-1 {
		return fmt.Errorf("--also-segment is given %d times; a host is in %d segments at most, its home included", len(o.alsoFlags), mesh.MaxSegments)
	}
	var errs []error
	taken := []string{o.gossip}
	for _, text := range o.alsoFlags {
		name, addr, _ := strings.Cut(text, "=")
		err := checkSegmentFlag(name, addr, taken)
		if slices.ContainsFunc(o.also, func(s alsoSegment) bool { return s.name == name }) {
			err = errors.New("the segment is given twice")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--also-segment %q: %w", text, err))
			continue
		}
		taken = append(taken, addr)
		o.also = append(o.also, alsoSegment{name: name, listen: addr})
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
		if err == nil && port == otherPort && port != "0" && (host == otherHost || unspecified(host) || unspecified(otherHost)) {
			return fmt.Errorf("%s is listened on already; give this host's address in each segment, by --gossip too, or another port", other)
		}
	}
	return nil
}

// unspecified tells whether a host to listen on stands for all addresses.
func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// checkReach refuses a node port that the members of a further segment could not
// reach: it is dialed at the address of the gossip there.
func (o *nodeOptions) checkReach() error {
	host, _, err := net.SplitHostPort(o.peer)
	if err != nil || unspecified(host) {
		return nil // the former is told of already
	}
	for _, s := range o.also {
		if other, _, err := net.SplitHostPort(s.listen); err == nil && other != host {
			return fmt.Errorf("--peer %s cannot be reached in segment %s, where this host is %s; give --peer 0.0.0.0:PORT, all addresses", o.peer, s.name, other)
		}
	}
	return nil
}

// findSegmentAddresses finds out what the members of further segments dial: on
// the way to one of them, where the flag does not say it.
func (o *nodeOptions) findSegmentAddresses(creds identity.Credentials) error {
	for i, s := range o.also {
		known, _ := creds.In(s.name)
		host, _, err := net.SplitHostPort(s.listen)
		if err != nil {
			return fmt.Errorf("--also-segment %s=%s: %w", s.name, s.listen, err)
		}
		if unspecified(host) && len(known.GossipJoin) == 0 {
			return fmt.Errorf("--also-segment %s=%s: nobody is known in that segment, so this host's address there cannot be found out; give it instead of %q", s.name, s.listen, host)
		}
		if o.also[i].adv, err = advertisedFor(s.listen, "", known.GossipJoin); err != nil {
			return fmt.Errorf("--also-segment %s=%s: %w", s.name, s.listen, err)
		}
	}
	return nil
}

// segmentAddrs tells others in which further segments this host is.
func (o *nodeOptions) segmentAddrs() []identity.SegmentAddr {
	addrs := []identity.SegmentAddr{}
	for _, s := range o.also {
		addrs = append(addrs, identity.SegmentAddr{Segment: s.name, GossipAddr: s.adv})
	}
	return addrs
}

// missingKeys are the segments that this host was started in and has no keys of.
func (o *nodeOptions) missingKeys(creds identity.Credentials) (missing []string) {
	for _, s := range o.also {
		if _, ok := creds.In(s.name); !ok {
			missing = append(missing, s.name)
		}
	}
	return missing
}

// pools are the segments that the mesh opens, the home segment first.
func (o *nodeOptions) pools(creds identity.Credentials) ([]mesh.PoolConfig, error) {
	if o.segment != "" && o.segment != creds.Segment {
		return nil, fmt.Errorf("--segment is %q, but this host joined segment %q; remove the host and join it again with a token for the other segment", o.segment, creds.Segment)
	}
	pools := []mesh.PoolConfig{{Segment: creds.Segment, Bind: o.gossip, Advertise: o.gossipAdv, Keys: creds.GossipKeys, Join: creds.GossipJoin, Allow: o.allowed(o.gossipAdv)}}
	for _, s := range o.also {
		known, ok := creds.In(s.name)
		switch {
		case s.name == creds.Segment:
			return nil, fmt.Errorf("--also-segment %s=%s: that is this host's home segment; leave it out", s.name, s.listen)
		case !ok:
			return nil, fmt.Errorf("--also-segment %s=%s: this host has no key of that segment", s.name, s.listen)
		}
		pools = append(pools, mesh.PoolConfig{Segment: s.name, Bind: s.listen, Advertise: s.adv, Keys: known.GossipKeys, Join: known.GossipJoin, Allow: o.allowed(s.adv)})
	}
	return pools, nil
}
