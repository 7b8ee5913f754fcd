package artifact

import (
	"fmt"
	"slices"
	"testing"
)

func hostIDs(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("h%d", i))
	}
	return ids
}

// children counts whom each host sends a stripe to when some are gone, by stripe. ""
// is who has it all.
func children(trees map[string][][]string, gone ...string) map[string]*[Stripes]int {
	load := map[string]*[Stripes]int{"": {}}
	for id := range trees {
		load[id] = &[Stripes]int{}
	}
	for id, stripes := range trees {
		if slices.Contains(gone, id) {
			continue
		}
		for s, list := range stripes {
			load[takesFrom(list, gone)][s]++
		}
	}
	return load
}

func takesFrom(list, gone []string) string {
	for _, id := range list {
		if !slices.Contains(gone, id) {
			return id
		}
	}
	return ""
}

func TestTrees(t *testing.T) {
	digest := digestOf([]byte("x"))
	for _, n := range []int{1, 2, 3, 4, 5, 16, 63, 64, 1000} {
		ids := hostIDs(n)
		trees := Trees(digest, ids)
		slices.Reverse(ids)
		again := Trees(digest, ids)
		for id, stripes := range trees {
			if len(stripes) != Stripes || !slices.EqualFunc(stripes, again[id], slices.Equal) {
				t.Fatalf("%d hosts: %s has %v", n, id, stripes)
			}
			for s, list := range stripes {
				if len(list) > maxAncestors || slices.Contains(list, id) {
					t.Errorf("%d hosts: %s takes stripe %d from %v", n, id, s, list)
				}
				mustReachTheTop(t, trees, id, s)
			}
		}
		for id, by := range children(trees) {
			switch {
			case id == "" && *by != [Stripes]int{1, 1}:
				t.Errorf("%d hosts: %v are at the top", n, *by)
			case id != "" && (min(by[0], by[1]) > 0 && n > 2 || max(by[0], by[1]) > 2):
				t.Errorf("%d hosts: %s has the children %v", n, id, *by)
			}
		}
	}
}

// mustReachTheTop: a host's parents end at the top, after as many as log2(n).
func mustReachTheTop(t *testing.T, trees map[string][][]string, id string, stripe int) {
	t.Helper()
	depth, at := 0, id
	for ; len(trees[at][stripe]) > 0; depth++ {
		if at = trees[at][stripe][0]; 1<<depth > len(trees) {
			t.Fatalf("%d hosts: %s is at depth %d of stripe %d", len(trees), id, depth, stripe)
		}
	}
}

// Whoever is gone: nobody sends more than two hosts' halves, and who has it all at
// most one more of them than before; and nobody waits for a host that waits for it.
func TestWhoTakesTheirPlace(t *testing.T) {
	for _, n := range []int{3, 4, 5, 15, 16, 63, 64} {
		trees := Trees(digestOf([]byte("x")), hostIDs(n))
		for gone := range trees {
			for id, by := range children(trees, gone) {
				if most := 2; id == "" && by[0]+by[1] > most+1 || id != "" && by[0]+by[1] > most {
					t.Errorf("%d hosts without %s: %q sends %v", n, gone, id, *by)
				}
			}
			for id := range trees {
				for s := range Stripes {
					at := id
					for steps := 0; at != ""; steps++ {
						if at = takesFrom(trees[at][s], []string{gone}); steps > n {
							t.Fatalf("%d hosts without %s: %s waits for itself", n, gone, id)
						}
					}
				}
			}
		}
	}
}

// Who feeds another segment sends nothing in its own, or a half where the number is
// even.
func TestFeedersHaveFewChildren(t *testing.T) {
	digest := digestOf([]byte("x"))
	for _, n := range []int{1, 2, 3, 5, 8, 15, 64} {
		ids := hostIDs(n)
		for _, feeder := range ids {
			trees := Trees(digest, ids, feeder, "nobody's")
			if len(trees) != n {
				t.Fatalf("%d hosts: %d are in the trees", n, len(trees))
			}
			if by := children(trees)[feeder]; by[0]+by[1] > 1-n%2 {
				t.Errorf("%d hosts: %s feeds others and has the children %v", n, feeder, *by)
			}
		}
	}
}
