package artifact

import (
	"encoding/json"
	"slices"
	"time"

	"moult/updater/release"
)

// A row of segments: the seed is in the first one, and the last host of each is in the
// next one, too, as the only way there.
const (
	rowSegments = 3
	rowHosts    = 5 // of a segment
)

// rowOf returns the segments that a host is in.
func rowOf(i int) []int {
	home := max(0, i-1) / rowHosts
	if i > 0 && i%rowHosts == 0 && home+1 < rowSegments {
		return []int{home, home + 1}
	}
	return []int{home}
}

func shareSegment(i, j int) bool {
	return slices.ContainsFunc(rowOf(i), func(s int) bool { return slices.Contains(rowOf(j), s) })
}

// row has the hosts of all segments fetch at the same moment and returns the seconds
// until the last has it, and how many copies the seed sent.
func (d *distribution) row() (seconds, copies float64) {
	t := d.t
	t.Helper()
	nodes := d.startNodes(rowSegments * rowHosts)
	public, secret, err := release.GenerateKey()
	must(t, err)
	manifest, err := json.Marshal(release.Manifest{
		Product: release.Product, Version: "2.0.0", Number: 2, Created: time.Now().UTC(),
		Artifacts: []release.Artifact{{OS: "linux", Arch: "amd64", Size: d.size, SHA256: d.digest, ChunkSize: d.chunks.Size, ChunkList: d.chunks.List}},
	})
	must(t, err)
	signature, err := release.Sign(secret, manifest)
	must(t, err)
	peer := func(i int) Peer { return Peer{HostID: d.id(i), Addr: d.addr(i), Class: rowOf(i)[0]} }
	holders := func(of int) (peers []Peer) {
		for i, n := range nodes {
			if i != of && shareSegment(i, of) && n.store.Has(d.digest) {
				peers = append(peers, peer(i))
			}
		}
		return peers
	}
	relays := func(of int, via []string) (peers []Peer) {
		for i := 1; i < len(nodes); i++ {
			if i != of && len(rowOf(i)) > 1 && shareSegment(i, of) && !slices.Contains(via, d.id(i)) {
				peers = append(peers, peer(i))
			}
		}
		return peers
	}
	parents := make([][][]Peer, len(nodes))
	for s := range rowSegments {
		var ids []string
		for i := s*rowHosts + 1; i <= (s+1)*rowHosts; i++ {
			ids = append(ids, d.id(i))
		}
		trees := Trees(d.digest, ids, d.id((s+1)*rowHosts))
		for i := s*rowHosts + 1; i <= (s+1)*rowHosts; i++ {
			parents[i] = d.peers(trees[d.id(i)])
		}
	}
	for i := 1; i < len(nodes); i++ {
		if len(rowOf(i)) < 2 {
			continue
		}
		p, err := NewPuller(PullerConfig{
			HostID: d.id(i), Store: nodes[i].store, HTTP: nodes[i].client, ReleaseKeys: func() release.KeySet { return release.Pinned(public) },
			Candidates: func(string) []Peer { return holders(i) }, Relays: func(via []string) []Peer { return relays(i, via) },
			Active: func() bool { return true },
		})
		must(t, err)
		nodes[i].puller.Store(p)
	}
	seconds = d.fetchAll(nodes, nil, func(i int) FetchRequest {
		return FetchRequest{
			Candidates: func() []Peer { return holders(i) }, Parents: func() [][]Peer { return parents[i] },
			Pull: &Pull{HostID: d.id(i), Manifest: manifest, Signature: signature, Relays: func(via []string) []Peer { return relays(i, via) }},
		}
	})
	return seconds, float64(nodes[0].served.Served()) / float64(d.size)
}
