package webui

import (
	"fmt"

	"moult/consensus/fleet"
)

// stagingJSON is how far a host is with what it is to have before its turn.
type stagingJSON struct {
	State  string `json:"state"`  // awaits_patch, fetching or failed
	Done   int64  `json:"done"`   // bytes
	Total  int64  `json:"total"`  // bytes
	Reason string `json:"reason"` // why it failed
}

// String tells it in words.
func (s stagingJSON) String() string {
	switch s.State {
	case "awaits_patch":
		return "awaits a patch that is being made"
	case "failed":
		return "not staged: " + s.Reason
	default:
		return fmt.Sprintf("%s of %s staged", byteCount(s.Done), byteCount(s.Total))
	}
}

// staged tells whether a host has an artifact, and if it does not, how far it is with it.
func (o Observation) staged(sha256 string) (bool, *stagingJSON) {
	if o.holds(sha256) {
		return true, nil
	}
	s := o.Staging
	if s.Digest != sha256 || s.State == "staged" {
		return false, nil
	}
	return false, &stagingJSON{State: s.State, Done: s.Done, Total: s.Total, Reason: s.Error}
}

// maxStagingReasons is of how many hosts a release tells why they do not stage it.
const maxStagingReasons = 20

// releaseStagingJSON is how far the hosts are with a release that all of them stage:
// those that are online and do not run it, and for which there is a binary.
type releaseStagingJSON struct {
	Hosts   int             `json:"hosts"`
	Staged  int             `json:"staged"` // of the hosts
	Failed  int             `json:"failed"` // of the hosts: they cannot have it now
	Done    int64           `json:"done"`   // bytes, of all hosts
	Total   int64           `json:"total"`  // bytes, of all hosts
	Reasons []stagingReason `json:"reasons"`
}

// stagingReason is why a host does not stage a release.
type stagingReason struct {
	HostID string `json:"host_id"`
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// releaseStaging is nil of a release that is not staged for all hosts.
func (p picture) releaseStaging(rel fleet.Release) *releaseStagingJSON {
	if rel.StageIndex == 0 || rel.StageFor != "" {
		return nil
	}
	out := &releaseStagingJSON{Reasons: []stagingReason{}}
	for _, h := range p.agents() {
		o := p.observed[h.ID]
		a, fits := rel.Artifact(h.OS, h.Arch)
		if !fits || !o.Online || h.Quarantine != nil || !p.behind(h.ID, rel.Version) {
			continue
		}
		out.Hosts++
		out.Total += a.Size
		switch staged, s := o.staged(a.SHA256); {
		case staged:
			out.Staged++
			out.Done += a.Size
		case s == nil:
		case s.State == "failed":
			out.Failed++
			if len(out.Reasons) < maxStagingReasons {
				out.Reasons = append(out.Reasons, stagingReason{h.ID, h.Name, s.Reason})
			}
		default:
			share := float64(s.Done) / float64(max(s.Total, 1)) // of a patch, too
			out.Done += int64(min(max(share, 0), 1) * float64(a.Size))
		}
	}
	return out
}

// Percent is how much is there of what all hosts need; 100 is all of it.
func (s releaseStagingJSON) Percent() int64 {
	return int64(100 * float64(s.Done) / float64(max(s.Total, 1)))
}
