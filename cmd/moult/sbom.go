package main

import (
	"cmp"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// bom is a software bill of materials in CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/,
// as far as moult fills it in. It is made of what Go's linker wrote into the
// binary, so that it tells of this binary and not of some list beside it; it
// holds no time and no serial number, so that the same binary has the same one.
type bom struct {
	Format      string         `json:"bomFormat"`
	SpecVersion string         `json:"specVersion"`
	Version     int            `json:"version"`
	Metadata    bomMetadata    `json:"metadata"`
	Components  []bomComponent `json:"components"`
}

type bomMetadata struct {
	Component bomComponent `json:"component"`
}

type bomComponent struct {
	Type    string    `json:"type"`
	Ref     string    `json:"bom-ref"`
	Name    string    `json:"name"`
	Version string    `json:"version,omitempty"`
	Purl    string    `json:"purl,omitempty"`
	Hashes  []bomHash `json:"hashes,omitempty"`
}

type bomHash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

func newSBOMCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sbom [BINARY]",
		Short: "Print the software bill of materials of a binary (CycloneDX)",
		Long: `Print which modules, in which versions, a moult binary was built from, as CycloneDX
JSON. Without BINARY it is the running one; one for another platform can be named.`,
		Example: "  moult sbom\n  moult sbom bin/moult-arm64 > moult.cdx.json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := os.Executable()
			ownVersion := version
			if len(args) > 0 {
				path, ownVersion, err = args[0], "", nil
			}
			if err != nil {
				return err
			}
			info, err := buildinfo.ReadFile(path)
			if err != nil {
				return fmt.Errorf("read what %s was built from: %w; name a binary that was built by Go", path, err)
			}
			return printJSON(cmd.OutOrStdout(), bomOf(info, ownVersion))
		},
	}
	cmd.Flags().Bool("json", true, "print JSON, as always: CycloneDX is JSON")
	return cmd
}

// bomOf makes the bill of a binary. Its own version is not in what the linker
// wrote; "": not known.
func bomOf(info *buildinfo.BuildInfo, ownVersion string) bom {
	own := bomComponent{Type: "application", Ref: info.Main.Path, Name: info.Main.Path, Version: ownVersion}
	goVersion := strings.TrimPrefix(info.GoVersion, "go")
	b := bom{Format: "CycloneDX", SpecVersion: "1.6", Version: 1, Metadata: bomMetadata{own}, Components: []bomComponent{{
		Type: "library", Ref: "pkg:golang/std@" + goVersion, Name: "std", Version: goVersion, Purl: "pkg:golang/std@" + goVersion,
	}}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		purl := "pkg:golang/" + m.Path + "@" + strings.ReplaceAll(m.Version, "+", "%2B")
		c := bomComponent{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, Purl: purl}
		if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(sum) == 32 {
			c.Hashes = []bomHash{{"SHA-256", hex.EncodeToString(sum)}}
		}
		b.Components = append(b.Components, c)
	}
	slices.SortFunc(b.Components, func(x, y bomComponent) int { return cmp.Compare(x.Ref, y.Ref) })
	return b
}
