package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"moult/cmd/internal/nodekit"
	"moult/updater/delta"
	"moult/updater/patch"
	"moult/updater/release"
)

// patchesDir is where a release directory has its patches, each named
// OLDSHA256-NEWSHA256.
const patchesDir = "patches"

// patchSource is an older binary that hosts may run.
type patchSource struct {
	platform release.Platform
	path     string
}

// patchSources finds the binaries that --from names: release directories, or
// files. It takes those of the platforms that the new release has.
func patchSources(from []string, platforms map[release.Platform]string) ([]patchSource, error) {
	var out []patchSource
	for _, path := range from {
		st, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("--from: %w; give the directory of an older release, or a binary", err)
		}
		var found []patchSource
		if st.IsDir() {
			d, err := release.ReadDir(path)
			if err != nil {
				return nil, fmt.Errorf("--from: %w", err)
			}
			for _, a := range d.Parsed.Artifacts {
				p := release.Platform{OS: a.OS, Arch: a.Arch}
				if _, ok := platforms[p]; ok {
					found = append(found, patchSource{p, d.ArtifactPath(a)})
				}
			}
		} else {
			for p := range platforms {
				if p.Check(path) == nil {
					found = append(found, patchSource{p, path})
				}
			}
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("--from %s: it is of no platform of this release; give an older binary of one of them", path)
		}
		out = append(out, found...)
	}
	slices.SortStableFunc(out, func(a, b patchSource) int {
		return cmp.Or(cmp.Compare(a.platform.OS, b.platform.OS), cmp.Compare(a.platform.Arch, b.platform.Arch))
	})
	return out, nil
}

// madePatch is a patch in a release directory.
type madePatch struct {
	Platform string `json:"platform"`
	From     string `json:"from"` // sha256
	To       string `json:"to"`   // sha256
	Size     int64  `json:"size"`
	Whole    int64  `json:"whole"` // bytes of the file that it makes
	Path     string `json:"path"`
}

// makePatches writes the patches of a release that was made in dir. A patch that
// is not worth its while is left out, and told of.
func makePatches(ctx context.Context, dir string, m release.Manifest, sources []patchSource, progress io.Writer) ([]madePatch, error) {
	var out []madePatch
	for _, s := range sources {
		i := slices.IndexFunc(m.Artifacts, func(a release.Artifact) bool { return a.OS == s.platform.OS && a.Arch == s.platform.Arch })
		if i < 0 {
			continue // patchSources took only platforms of the release
		}
		a := m.Artifacts[i]
		newPath := release.Dir{Path: dir, Parsed: m}.ArtifactPath(a)
		fmt.Fprintf(progress, "making a patch for %s from %s\n", s.platform, s.path)
		begin := time.Now()
		made, h, err := makePatch(ctx, s.path, newPath)
		switch {
		case errors.Is(err, patch.ErrNotWorth), errors.Is(err, delta.ErrTooDifferent), errors.Is(err, delta.ErrTooLarge):
			fmt.Fprintf(progress, "no patch for %s from %s: %v\n", s.platform, s.path, err)
			continue
		case err != nil:
			return nil, fmt.Errorf("make patch from %s: %w", s.path, err)
		case slices.ContainsFunc(out, func(p madePatch) bool { return p.From == h.OldDigest && p.To == h.NewDigest }):
			continue // named twice
		}
		path := filepath.Join(dir, patchesDir, patch.Name(h.OldDigest, h.NewDigest))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, made, 0o644); err != nil {
			return nil, err
		}
		fmt.Fprintf(progress, "%s  patch from %.12s…, %s for %s, made in %.1f s\n", s.platform, h.OldDigest, nodekit.ByteCount(int64(len(made))), nodekit.ByteCount(a.Size), time.Since(begin).Seconds())
		out = append(out, madePatch{s.platform.String(), h.OldDigest, h.NewDigest, int64(len(made)), a.Size, path})
	}
	return out, nil
}

func makePatch(ctx context.Context, oldPath, newPath string) ([]byte, delta.Header, error) {
	old, err := readBinary(oldPath)
	if err != nil {
		return nil, delta.Header{}, err
	}
	new, err := readBinary(newPath)
	if err != nil {
		return nil, delta.Header{}, err
	}
	return patch.Make(ctx, old, new)
}

func readBinary(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > delta.MaxFileLen {
		return nil, fmt.Errorf("%w: %s has %s", delta.ErrTooLarge, path, nodekit.ByteCount(st.Size()))
	}
	return os.ReadFile(path)
}
