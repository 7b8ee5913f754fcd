package webui

import "testing"

func TestStatesAreComparedAtEqualIndex(t *testing.T) {
	a, b := ServerState{Index: 7, SHA256: "aa"}, ServerState{Index: 7, SHA256: "bb"}
	behind := ServerState{Index: 6, SHA256: "cc"}
	silent := ServerState{Error: "it does not answer"}
	for _, tt := range []struct {
		name   string
		states []ServerState
		want   string
	}{
		{"all the same", []ServerState{a, a, a}, statesEqual},
		{"one server", []ServerState{a}, statesEqual},
		{"one of three differs", []ServerState{a, a, b}, statesDiffer},
		{"one is behind", []ServerState{a, behind, a}, statesUndecided},
		{"one is silent", []ServerState{a, silent, a}, statesUndecided},
		{"one is silent and two differ", []ServerState{silent, a, b}, statesDiffer},
		{"all are silent", []ServerState{silent, silent}, statesUndecided},
	} {
		if got := compareStates(tt.states); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
