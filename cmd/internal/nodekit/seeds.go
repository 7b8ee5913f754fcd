package nodekit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"

	"moult/mesh"
	"moult/mesh/identity"
	"moult/mesh/nodeport"
)

// PathNeighbours asks any host's node port for members of a segment:
// GET /node/neighbours?segment=NAME, answered with membersAnswer.
const PathNeighbours = "/node/neighbours"

// Limits of asking for members.
const (
	maxNeighboursAsked = 3 // of those that the mesh knows, at a time
	maxKnownAsked      = 2 // of those that the configuration and the enrolment name
	maxMembersAnswer   = 8 << 10
)

// membersAnswer is what a host sees of a segment itself; empty when it is not in it.
type membersAnswer struct {
	Addrs []string `json:"addrs"` // gossip addresses
}

// membersEndpoint answers members of the cluster from this node's own pools.
func membersEndpoint(node *mesh.Node) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(membersAnswer{node.Members(r.URL.Query().Get("segment"))}) // the caller is gone if this errs
	}
}

// seedFinder asks node ports for members of a segment.
type seedFinder struct {
	current *identity.Current
	join    []string // node ports from the configuration
	client  *http.Client
	logger  *slog.Logger
}

// NewSeedFinder finds seeds from the given node ports on.
func NewSeedFinder(current *identity.Current, join []string, logger *slog.Logger) *seedFinder {
	return &seedFinder{current: current, join: join, client: nodeport.Client(current.Get, AnyMember), logger: logger}
}

// Find asks a few hosts at once: some of the neighbours, and some that are known
// from elsewhere. What the last enrolment named is among the answers.
func (f *seedFinder) Find(ctx context.Context, segment string, neighbours []mesh.Contact) []string {
	creds := f.current.Get()
	known, _ := creds.In(segment)
	var ask []string
	for _, w := range neighbours[:min(len(neighbours), maxNeighboursAsked)] {
		ask = append(ask, w.Addr)
	}
	others := slices.Concat(f.join, creds.Servers)
	rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
	ask = append(ask, others[:min(len(others), maxKnownAsked)]...)
	answers := make([][]string, len(ask))
	var asked sync.WaitGroup
	for i, addr := range ask {
		asked.Go(func() {
			var err error
			if answers[i], err = f.ask(ctx, addr, segment); err != nil {
				f.logger.Debug("ask for members of a segment", "segment", segment, "peer", addr, "error", err)
			}
		})
	}
	asked.Wait()
	found := slices.Concat(append(answers, known.GossipJoin)...)
	slices.Sort(found)
	return slices.Compact(found)
}

func (f *seedFinder) ask(ctx context.Context, addr, segment string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+PathNeighbours+"?segment="+url.QueryEscape(segment), http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", addr, resp.Status)
	}
	var answer membersAnswer
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxMembersAnswer)).Decode(&answer); err != nil {
		return nil, err
	}
	answer.Addrs = slices.DeleteFunc(answer.Addrs, func(a string) bool {
		_, _, err := net.SplitHostPort(a)
		return err != nil
	})
	return answer.Addrs[:min(len(answer.Addrs), mesh.MaxSeeds)], nil
}

// waysToServers are where a host passes on what is for a server, and where it asks
// itself: what the mesh knows, then what the configuration and the enrolment name.
func waysToServers(node *mesh.Node, current *identity.Current, join []string) func(visited []string) []nodeport.Way {
	return func(visited []string) []nodeport.Way {
		var ways []nodeport.Way
		for _, w := range node.WaysToServers(visited) {
			ways = append(ways, nodeport.Way(w))
		}
		for _, addr := range slices.Concat(join, current.Get().Servers, current.Get().Relays) {
			if !slices.ContainsFunc(ways, func(w nodeport.Way) bool { return w.Addr == addr }) {
				ways = append(ways, nodeport.Way{Addr: addr})
			}
		}
		return ways
	}
}
