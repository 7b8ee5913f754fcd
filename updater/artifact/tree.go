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
// it from: by stripe, its parent, that one's parent and so on, up to maxAncestors;
// nobody for the host at the top, which takes the stripe from who has it all. Each
// stripe has a binary tree, and who has children in the one has none in the other:
// so each host sends as many bytes as it gets, however many there are, and the
// last one is 2·log2(n) chunks behind the first. (Two-tree broadcast: Sanders,
// Speck, Träff 2009.)
//
// Purely by its input, the same for any order of the ids; each artifact has other
// trees.
func Trees(digest string, ids []string) map[string][][]string {
	order := slices.Clone(ids)
	slices.SortFunc(order, func(a, b string) int {
		return cmp.Or(cmp.Compare(rendezvous(digest, Peer{HostID: a}), rendezvous(digest, Peer{HostID: b})), cmp.Compare(a, b))
	})
	order = slices.Compact(order)
	trees := make(map[string][][]string, len(order))
	for at, id := range order {
		trees[id] = [][]string{
			ancestors(at, func(i int) string { return order[i] }),
			ancestors(len(order)-1-at, func(i int) string { return order[len(order)-1-i] }),
		}
	}
	return trees
}

// ancestors walks up a binary tree in which the children of i are 2i+1 and 2i+2.
func ancestors(i int, name func(int) string) []string {
	list := []string{}
	for i > 0 && len(list) < maxAncestors {
		i = (i - 1) / 2
		list = append(list, name(i))
	}
	return list
}
