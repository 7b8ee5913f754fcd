package artifact

import (
	"cmp"
	"slices"
)

// Stripes is into how many parts, each with a tree of its own, hosts that get an
// artifact at the same time split it.
const Stripes = 2

// maxAncestors is how many hosts before it a host is told of: who loses its parent
// goes on with the next.
const maxAncestors = 4

// Trees tells each of the hosts that get an artifact at the same time whom to take
// it from: by stripe, its parent, and then who takes the parent's place, up to
// maxAncestors; nobody for the host at the top, which takes the stripe from who has it
// all. Each stripe has a binary tree, and who has children in the one has none in the
// other: so each host sends as many bytes as it gets, however many there are, and the
// last one is 2·log2(n) chunks behind the first. (Two-tree broadcast: Sanders,
// Speck, Träff 2009.)
//
// Those of the hosts that feed another segment, too, have fewer children, the first of
// them none or one.
//
// Purely by its input, the same for any order of the ids; each artifact has other
// trees.
func Trees(digest string, ids []string, feeders ...string) map[string][][]string {
	order := arrange(digest, ids, feeders)
	trees := make(map[string][][]string, len(order))
	for at, id := range order {
		trees[id] = [][]string{
			sources(at, len(order), func(i int) string { return order[i] }),
			sources(len(order)-1-at, len(order), func(i int) string { return order[len(order)-1-i] }),
		}
	}
	return trees
}

// arrange draws the hosts' order. The nearer to the middle, the fewer children a host
// has: that is where those who feed others are.
func arrange(digest string, ids, feeders []string) []string {
	order := slices.Clone(ids)
	weights := make(map[string]uint64, len(ids)) // a sha256 each
	for _, id := range ids {
		weights[id] = rendezvous(digest, Peer{HostID: id})
	}
	slices.SortFunc(order, func(a, b string) int {
		return cmp.Or(cmp.Compare(weights[a], weights[b]), cmp.Compare(a, b))
	})
	order = slices.Compact(order)
	var feeding []string
	order = slices.DeleteFunc(order, func(id string) bool {
		if !slices.Contains(feeders, id) {
			return false
		}
		feeding = append(feeding, id)
		return true
	})
	return slices.Insert(order, (len(order)+1)/2, feeding...)
}

// sources is whom the host at a place of one tree takes its stripe from: its parent,
// and when that is gone, one who then has a child less and room for another. Of the two
// children of a host one goes to the grandparent. The other goes to the host that was to
// send the other stripe to the one that is gone; it is a leaf of this tree, and not
// behind that child. So whoever is gone, nobody sends more than before. Then come the
// ancestors.
func sources(i, n int, name func(int) string) []string {
	list := []string{}
	if i == 0 {
		return list
	}
	parent := above(i)
	list = append(list, name(parent))
	if leaf := n - 1 - above(n-1-parent); parent < n-1 && leaf != parent {
		second := 2*parent + 2
		if descends(leaf, second) {
			second--
		}
		if i == second {
			list = append(list, name(leaf))
		}
	}
	for parent > 0 && len(list) < maxAncestors {
		parent = above(parent)
		if !slices.Contains(list, name(parent)) {
			list = append(list, name(parent))
		}
	}
	return list
}

// above is the place of the parent in a binary tree in which the children of i are
// 2i+1 and 2i+2.
func above(i int) int { return (i - 1) / 2 }

// descends tells whether the host at i is that at top, or gets its chunks from it.
func descends(i, top int) bool {
	for i > top {
		i = above(i)
	}
	return i == top
}
