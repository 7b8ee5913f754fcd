package webui

import (
	"net/http"
	"slices"

	"moult/consensus/fleet"
	"moult/updater/release"
)

var releasesPageKind = pageKind{name: "releases", title: "Releases", topics: "releases hosts fleet-updates cluster"}

const maxReleaseRows = 50

// releasesView is what the releases page shows.
type releasesView struct {
	shell
	Releases []releaseRow
	Older    int // releases that are not listed
	Others   []versionCount
	Keys     releaseKeysJSON
}

// releaseRow is a release and who runs it.
type releaseRow struct {
	releaseJSON
	Target bool   // what hosts are meant to run
	Signed bool   // by a release key that is pinned now
	Hosts  int    // that run it
	Stage  string // what the button to stage it says; "": there is none
	After  string // what is true once it is withdrawn, for who is asked; "" for one that is withdrawn
}

// versionCount is a version that hosts run and that is not a release.
type versionCount struct {
	Version string
	Hosts   int
}

func (u *ui) releasesPage(w http.ResponseWriter, r *http.Request) error {
	p, v := u.picture(), &releasesView{Keys: u.releaseKeys()}
	runs := map[string]int{}
	for _, h := range p.agents() {
		if version := p.observed[h.ID].Version; version != "" {
			runs[version]++
		}
	}
	cluster, _ := p.Cluster()
	for i, rel := range p.Releases() {
		if i >= maxReleaseRows {
			v.Older++
		} else {
			_, err := release.Verify(ReleaseKeys(cluster), rel.Manifest, rel.Signature)
			row := releaseRow{
				releaseJSON: p.release(rel), Hosts: runs[rel.Version], Signed: err == nil,
				Target: !rel.Withdrawn && rel.Version == p.target, After: p.afterWithdrawal(rel, runs[rel.Version]),
			}
			switch s := row.Staging; {
			case !row.Target:
			case s == nil && row.Hosts < len(p.agents()):
				row.Stage = "Stage"
			case s != nil && s.Staged < s.Hosts:
				row.Stage = "Stage again"
			}
			v.Releases = append(v.Releases, row)
		}
		delete(runs, rel.Version)
	}
	for version, n := range runs {
		v.Others = append(v.Others, versionCount{version, n})
	}
	slices.SortFunc(v.Others, func(a, b versionCount) int { return compareVersions(b.Version, a.Version) })
	return u.show(w, r, releasesPageKind, v)
}

// afterWithdrawal tells what the withdrawal of a release that some hosts run changes.
func (p picture) afterWithdrawal(rel fleet.Release, hosts int) string {
	if rel.Withdrawn {
		return ""
	}
	const always = "It can be chosen no more, and cannot be brought back. Hosts that run it go on. "
	if rel.Version != p.target {
		return always + "The target stays " + p.target + "."
	}
	for _, other := range p.Releases() { // the highest number first
		if !other.Withdrawn && other.Version != rel.Version {
			text := always + "The target becomes " + other.Version + "."
			if hosts > 0 {
				text += " Its number is lower: what runs " + rel.Version + " now (" + count(hosts, "host") + ") is then shown as behind, and takes it only if it is signed as a rollback."
			}
			return text
		}
	}
	return always + "No other release is available: the target becomes " + p.version + ", which this server runs, and no update can be started until a release is published."
}

// platform is an artifact's platform as people write it.
func platform(a fleet.Artifact) string { return a.OS + "/" + a.Arch }
