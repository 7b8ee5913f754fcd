package fleet

import (
	"fmt"
	"slices"
)

// checkRelease refuses a release that is not complete.
func checkRelease(r Release) *Error {
	switch {
	case !ValidVersion(r.Version):
		return refuse(CodeBadRequest, "version %q: %s", r.Version, versionRule)
	case r.Number == 0:
		return refuse(CodeBadRequest, "number is 0; releases are numbered from 1")
	case len(r.Manifest) > MaxManifestBytes:
		return refuse(CodeBadRequest, "manifest is %d bytes; give at most %d", len(r.Manifest), MaxManifestBytes)
	case len(r.Signature) > MaxSignatureBytes:
		return refuse(CodeBadRequest, "signature is %d bytes; give at most %d", len(r.Signature), MaxSignatureBytes)
	case len(r.Artifacts) == 0:
		return refuse(CodeBadRequest, "artifacts is empty; a release has at least one")
	case len(r.Artifacts) > MaxArtifacts:
		return refuse(CodeBadRequest, "artifacts has %d entries; give at most %d", len(r.Artifacts), MaxArtifacts)
	}
	for i, a := range r.Artifacts {
		switch {
		case !ValidName(a.OS):
			return refuse(CodeBadRequest, "artifacts[%d].os %q: give Go's name of it, such as linux", i, a.OS)
		case !ValidName(a.Arch):
			return refuse(CodeBadRequest, "artifacts[%d].arch %q: give Go's name of it, such as amd64", i, a.Arch)
		case a.Size <= 0:
			return refuse(CodeBadRequest, "artifacts[%d].size is %d; give the file's length in bytes", i, a.Size)
		case !validDigest(a.SHA256):
			return refuse(CodeBadRequest, "artifacts[%d].sha256 is not 64 lower-case hex digits", i)
		case slices.ContainsFunc(r.Artifacts[:i], func(b Artifact) bool { return a.OS == b.OS && a.Arch == b.Arch }):
			return refuse(CodeBadRequest, "artifacts names %s/%s twice; give one file for each platform", a.OS, a.Arch)
		}
	}
	return nil
}

func applyReleasePublished(t *tx, c ReleasePublished) *Error {
	r := c.Release
	if refused := checkRelease(r); refused != nil {
		return refused
	}
	for _, other := range t.view().Releases() {
		if other.Version == r.Version {
			return refuse(CodeReleaseExists, "release %s exists already; give the new one another version", r.Version)
		}
		if other.Number == r.Number {
			return refuse(CodeReleaseExists, "release %s has the number %d already; create the new one with a higher --number", other.Version, r.Number)
		}
	}
	if refused := t.roomForRelease(); refused != nil {
		return refused
	}
	r.PublishedAt, r.PublishedBy, r.Withdrawn, r.StageIndex, r.StageFor = t.at, t.actor, false, 0, ""
	t.put(tableReleases, r)
	t.touch("releases", "hosts")
	t.audit("release "+r.Version, fmt.Sprintf("number %d, %d artifacts", r.Number, len(r.Artifacts)))
	return nil
}

func applyReleaseWithdrawn(t *tx, c ReleaseWithdrawn) *Error {
	v := t.view()
	r, ok := v.Release(c.Version)
	if !ok || r.Withdrawn {
		return refuse(CodeReleaseNotFound, "there is no release %q; `moult release list` shows them", c.Version)
	}
	if u, active := v.ActiveFleetUpdate(); active && u.TargetVersion == c.Version {
		return refuse(CodeConflict, "a fleet update to %s is %s; cancel it first", c.Version, u.Status)
	}
	for _, j := range v.OpenJobs() {
		if j.TargetVersion == c.Version {
			return refuse(CodeConflict, "host %s is being updated to %s; wait for the end of its job", j.HostName, c.Version)
		}
	}
	r.Withdrawn, r.StageIndex, r.StageFor = true, 0, ""
	t.put(tableReleases, r)
	t.touch("releases", "hosts")
	t.audit("release "+r.Version, "")
	return nil
}

func applyReleaseStaged(t *tx, c ReleaseStaged) *Error {
	r, refused := t.availableRelease(c.Version)
	if refused != nil {
		return refused
	}
	v := t.view()
	if u, active := v.ActiveFleetUpdate(); c.FleetUpdateID != "" && (!active || u.ID != c.FleetUpdateID || u.TargetVersion != c.Version) {
		return refuse(CodeConflict, "no active fleet update %s brings hosts to %s; start one first, or stage the release for all hosts", clip(c.FleetUpdateID, MaxNameBytes), c.Version)
	}
	detail := "for all hosts"
	switch {
	case c.FleetUpdateID == "":
		for _, other := range v.Releases() {
			if other.Version != c.Version && other.StageIndex != 0 && other.StageFor == "" {
				other.StageIndex = 0
				t.put(tableReleases, other)
			}
		}
		r.StageFor = ""
	case r.StageIndex == 0 || r.StageFor != "": // else all hosts stage it already
		r.StageFor = c.FleetUpdateID
		detail = "for fleet update " + c.FleetUpdateID
	}
	r.StageIndex = t.index
	t.put(tableReleases, r)
	t.touch("releases", "hosts")
	t.audit("release "+r.Version, detail)
	return nil
}

func (t *tx) availableRelease(version string) (Release, *Error) {
	r, ok := t.view().Release(version)
	if !ok || r.Withdrawn {
		return r, refuse(CodeReleaseNotFound, "there is no release %q to choose; publish it first with: moult release publish", version)
	}
	return r, nil
}
