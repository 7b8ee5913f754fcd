package main

import (
	"fmt"
	"log/slog"
	"testing"

	"moult/cmd/internal/nodekit"
	"moult/consensus/fleet"
	"moult/mesh/identity"
)

// A host that was off for many statements gets all of them, in order and in
// parts, by saying how far it has come.
func TestHostCatchesUpWithKeyStatements(t *testing.T) {
	const all = 2*nodekit.KeysPerMessage + 5
	c := fleet.Cluster{KeysNumber: all}
	for n := range all {
		c.KeyStatements = append(c.KeyStatements, fleet.KeyStatement{Statement: fmt.Appendf(nil, "%d", n+1)})
	}
	if first := statementsAfter(c, newest(c, 1), 1); len(first) != 1 || string(first[0].Statement) != fmt.Sprint(all) {
		t.Fatalf("a round sends %q", first)
	}
	d := &keyDistributor{logger: slog.New(slog.DiscardHandler), follows: map[string]uint64{}}
	host := identity.Identity{HostID: "a", Role: identity.RoleAgent}
	follows := uint64(0)
	for parts := 0; ; parts++ {
		list, lacks := d.take(host, fmt.Appendf(nil, `{"number":%d}`, follows), c)
		if d.followed()["a"] != follows {
			t.Fatalf("the server believes that the host follows %d, not %d", d.followed()["a"], follows)
		}
		if !lacks {
			if follows != all || parts != 3 {
				t.Fatalf("the host has come to %d in %d parts", follows, parts)
			}
			break
		}
		for _, s := range list {
			if follows++; string(s.Statement) != fmt.Sprint(follows) {
				t.Fatalf("statement %s comes when %d is due", s.Statement, follows)
			}
		}
	}
	// A number that does not exist is nobody's.
	if _, lacks := d.take(host, fmt.Appendf(nil, `{"number":%d}`, all+1), c); lacks || d.followed()["a"] != all {
		t.Error("a host follows what there is not")
	}
	if none := newest(fleet.Cluster{}, 4); none != 0 {
		t.Errorf("without statements the newest begin at %d", none)
	}
}
