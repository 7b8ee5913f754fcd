package fleet

import (
	"maps"
	"strings"
	"testing"
)

func TestLabelsAreSetAndAudited(t *testing.T) {
	s := fleetOf(t, 2)
	s.must(HostLabelsSet{HostID: "h1", Labels: map[string]string{"tier": "web", "rack": "a", "spare": ""}})
	before := s.state.View()
	if e := before.Audit(0, 1)[0]; e.Action != "host_labels_set" || e.Subject != "host agent-1" || e.Detail != "rack=a spare= tier=web" {
		t.Errorf("audited as %+v", e)
	}
	s.must(HostLabelsSet{HostID: "h1", Labels: map[string]string{"rack": "b"}, Was: map[string]string{"tier": "web", "rack": "a", "spare": ""}})
	if h, _ := s.state.View().Host("h1"); !maps.Equal(h.Labels, map[string]string{"rack": "b"}) {
		t.Errorf("%v", h.Labels)
	}
	if h, _ := before.Host("h1"); h.Labels["rack"] != "a" || len(h.Labels) != 3 {
		t.Errorf("a view from before shows %v", h.Labels)
	}
	if h, _ := s.state.View().Host("h2"); len(h.Labels) != 0 {
		t.Errorf("another host has %v", h.Labels)
	}
	s.must(HostLabelsSet{HostID: "h1", Labels: map[string]string{}})
	if e := s.state.View().Audit(0, 1)[0]; e.Detail != "no labels" {
		t.Errorf("audited as %+v", e)
	}
}

// Two admins who change the same labels: one wins, the other is told.
func TestLabelsThatWereChangedMeanwhileStay(t *testing.T) {
	s := fleetOf(t, 1)
	s.must(HostLabelsSet{HostID: "h1", Labels: map[string]string{"rack": "a"}, Was: map[string]string{}})
	for _, was := range []map[string]string{{}, {"rack": "b"}, {"rack": "a", "more": ""}} {
		change := HostLabelsSet{HostID: "h1", Labels: map[string]string{"tier": "x"}, Was: was}
		s.wants(CodeLabelsChanged, change)
		if e := s.apply(change); !strings.Contains(e.Message, "rack=a") {
			t.Errorf("what has it now? %s", e.Message)
		}
	}
	s.refused(CodeHostNotFound, HostLabelsSet{HostID: "gone"})
}

// What changes nothing leaves no trace.
func TestLabelsSetTwiceAreAuditedOnce(t *testing.T) {
	s := fleetOf(t, 1)
	change := HostLabelsSet{HostID: "h1", Labels: map[string]string{"rack": "a"}}
	s.must(change)
	index := s.state.View().Audit(0, 1)[0].Index
	s.must(change)
	if e := s.state.View().Audit(0, 1)[0]; e.Index != index {
		t.Errorf("audited again: %+v", e)
	}
}
