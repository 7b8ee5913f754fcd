package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestParseLabels(t *testing.T) {
	set, drop, err := parseLabels([]string{"rack=a", "note=", "eq=a=b", "tier-", "with-dash-"})
	if err != nil || !maps.Equal(set, map[string]string{"rack": "a", "note": "", "eq": "a=b"}) || !slices.Equal(drop, []string{"tier", "with-dash"}) {
		t.Errorf("%v %v %v", set, drop, err)
	}
	for arg, want := range map[string]string{
		"rack": "KEY=VALUE", "": "KEY=VALUE", "=x": "KEY=VALUE", "-": "KEY=VALUE",
		"a=1 a=2": "set twice", "a=1 a-": "set and taken away",
	} {
		if _, _, err := parseLabels(strings.Split(arg, " ")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", arg, err)
		}
	}
}
