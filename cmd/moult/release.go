package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"moult/cmd/internal/nodekit"
	"moult/updater/release"
)

func newReleaseCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "release", Short: "Make, publish and list releases",
		Long: `Make, publish and list releases. A release is a directory with a signed manifest and
the binary of each platform.`,
		Example: "  moult release create --version 1.4.2 --key release.key --out rel linux/amd64=bin/moult\n  moult release publish rel\n  moult release list",
	}
	f.register(cmd)
	cmd.AddCommand(newReleaseCreateCommand(&f), newReleaseSignCommand(), newReleasePublishCommand(&f), newReleaseListCommand(&f), newReleaseStageCommand(&f), newReleaseWithdrawCommand(&f))
	return cmd
}

func newReleaseCreateCommand(f *clientFlags) *cobra.Command {
	var o release.BuildOptions
	var key, passwordFile, expires string
	var from []string
	cmd := &cobra.Command{
		Use:   "create --version V --key FILE --out DIR OS/ARCH=PATH …",
		Short: "Make a signed release directory",
		Long: `Make a release directory: manifest.json, its signature and the binaries.

A key that is under a password asks for it, or reads it from --password-file or
standard input. Where more than one key has to sign: moult release sign DIR

Without --number it is one more than the newest that the cluster knows, or, when
no server is asked or answers, the seconds since 1970. The directory can be made
on a machine that reaches no server, and published from another.

With --from it also makes patches from older binaries, in DIR/patches: some tens
of kilobytes for a small change. Each takes seconds, and memory of ten times the
binary's size. Build all of them stripped and with -trimpath.`,
		Example: "  moult release create --version 1.4.2 --key release.key --out rel linux/amd64=bin/agent linux/arm64=bin/agent-arm64\n  moult release create --version 1.4.3 --key release.key --password-file key.password --expires 90d --out rel linux/amd64=bin/moult\n  moult release create --version 1.4.4 --key release.key --from rel-1.4.3 --out rel-1.4.4 linux/amd64=bin/moult",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Version == "" || key == "" || o.Dir == "" {
				return errors.New("--version, --key and --out have to be given")
			}
			o.Files = map[release.Platform]string{}
			for _, a := range args {
				platform, path, ok := strings.Cut(a, "=")
				if !ok {
					return fmt.Errorf("%q: give each binary as OS/ARCH=PATH, such as linux/amd64=bin/agent", a)
				}
				p, err := release.ParsePlatform(platform)
				if err != nil {
					return err
				}
				if _, twice := o.Files[p]; twice {
					return fmt.Errorf("%s is given twice", p)
				}
				o.Files[p] = path
			}
			sources, err := patchSources(from, o.Files)
			if err != nil {
				return err
			}
			o.Created = time.Now()
			if o.Expires, err = readExpiry(expires, o.Created); err != nil {
				return err
			}
			if o.SecretKey, err = secretKey(cmd, key, passwordFile); err != nil {
				return err
			}
			if o.Number == 0 {
				o.Number = nextReleaseNumber(cmd.Context(), f)
			}
			m, err := release.Build(o)
			if err != nil {
				return err
			}
			patches, err := makePatches(cmd.Context(), o.Dir, m, sources, cmd.ErrOrStderr())
			if err != nil {
				return fmt.Errorf("%w; the release itself is complete, in %s", err, o.Dir)
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), struct {
					release.Manifest
					Patches []madePatch `json:"patches,omitempty"`
				}{m, patches})
			}
			for _, a := range m.Artifacts {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s/%s  %s  sha256 %s\n", a.OS, a.Arch, nodekit.ByteCount(a.Size), a.SHA256)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "release %s, number %d, in %s; publish it with: moult release publish %s\n", m.Version, m.Number, o.Dir, o.Dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Version, "version", "", "version that the binaries report")
	cmd.Flags().Uint64Var(&o.Number, "number", 0, "rises with each release (default: one more than the newest known, else the seconds since 1970)")
	cmd.Flags().StringVar(&key, "key", "", "file with the release secret key (minisign format)")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "file whose first line is the key's password")
	cmd.Flags().StringVar(&o.Dir, "out", "", "directory to make")
	cmd.Flags().StringVar(&expires, "expires", "", "no host installs the release after that: a time to live such as 90d or 12h, or a day such as 2026-12-31")
	cmd.Flags().StringArrayVar(&from, "from", nil, "an older release's directory, or a binary, that hosts run: make patches from it (may be repeated)")
	cmd.Flags().Uint64Var(&o.MinFrom, "min-from", 0, "hosts that run a lower number do not take this release")
	cmd.Flags().StringVar(&o.Notes, "notes", "", "what is new, for the admins")
	cmd.Flags().Uint64Var(&o.Floor, "floor", 0, "hosts that took this release go below this number no more")
	cmd.Flags().BoolVar(&o.Whole, "whole", false, "sign no chunk lists, for hosts whose moult is from before there were any: they refuse such a manifest")
	cmd.Flags().BoolVar(&o.Rollback, "rollback", false, "this release may replace one with a higher number")
	return cmd
}

// readExpiry reads --expires: days, hours, or the end of a day in UTC.
func readExpiry(text string, now time.Time) (*time.Time, error) {
	const give = "give a time to live such as 90d or 12h, or a day such as 2026-12-31"
	if text == "" {
		return nil, nil
	}
	var at time.Time
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("--expires %q: %s", text, give)
		}
		at = now.AddDate(0, 0, int(n))
	} else if ttl, err := time.ParseDuration(text); err == nil {
		at = now.Add(ttl)
	} else if day, err := time.Parse(time.DateOnly, text); err == nil {
		at = day.AddDate(0, 0, 1)
	} else if at, err = time.Parse(time.RFC3339, text); err != nil {
		return nil, fmt.Errorf("--expires %q: %s", text, give)
	}
	if !at.After(now) {
		return nil, fmt.Errorf("--expires %q: that is over already; %s", text, give)
	}
	at = at.UTC().Truncate(time.Second)
	return &at, nil
}

func newReleaseSignCommand() *cobra.Command {
	var key, passwordFile string
	cmd := &cobra.Command{
		Use:     "sign DIR --key KEY",
		Short:   "Add a signature to a release, where more than one key has to sign",
		Example: "  moult release sign rel --key second.key",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return addSignature(cmd, filepath.Join(args[0], release.ManifestFile), key, passwordFile)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "file with the secret key")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "file whose first line is the key's password")
	return cmd
}

// nextReleaseNumber is one more than the newest that a server tells of.
func nextReleaseNumber(ctx context.Context, f *clientFlags) uint64 {
	now := uint64(time.Now().Unix())
	c, err := f.client()
	if err != nil || c.token == "" {
		return now
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	list, err := c.releases(ctx)
	if err != nil || len(list) == 0 {
		return now
	}
	newest := uint64(0)
	for _, r := range list {
		newest = max(newest, r.Number)
	}
	return newest + 1
}

func (c *client) releases(ctx context.Context) ([]apiRelease, error) {
	var out struct{ Releases []apiRelease }
	err := c.call(ctx, http.MethodGet, "/api/releases", nil, &out)
	return out.Releases, err
}

func newReleaseListCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the releases, the newest first", Args: cobra.NoArgs,
		Example: "  moult release list",
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			list, err := c.releases(cmd.Context())
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"releases": list})
			}
			var rows [][]string
			for _, r := range list {
				var platforms []string
				for _, a := range r.Artifacts {
					platforms = append(platforms, a.OS+"/"+a.Arch)
				}
				state := "available"
				if !r.Available {
					state = "withdrawn"
				} else if r.Staging != nil && r.Staging.Hosts > 0 {
					state += ", " + r.Staging.String()
				}
				rows = append(rows, []string{printable(r.Version), fmt.Sprint(r.Number), state, strings.Join(platforms, " ")})
			}
			return printTable(cmd.OutOrStdout(), []string{"VERSION", "NUMBER", "STATE", "PLATFORMS"}, rows)
		}),
	}
}

func newReleaseWithdrawCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "withdraw VERSION", Short: "Take a release out of choice", Args: cobra.ExactArgs(1),
		Long: `Take a release out of choice. Hosts that run it go on. Its version and number stay
taken; it cannot be published again.`,
		Example: "  moult release withdraw 1.4.2",
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			if err := c.call(cmd.Context(), http.MethodDelete, "/api/releases/"+args[0], nil, nil); err != nil {
				return err
			}
			return done(cmd, map[string]any{"withdrawn": args[0]}, "withdrawn; what there is: moult release list")
		}),
	}
}

func newReleasePublishCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "publish DIR",
		Short:   "Publish a release: it returns once a majority of the servers hold the bytes",
		Example: "  moult release publish rel",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := release.ReadDir(args[0])
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			var out apiRelease
			if err := publishRelease(cmd.Context(), c, d, cmd.ErrOrStderr(), &out); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "published %s; update the fleet with: moult fleet update\n", d.Parsed.Version)
			return nil
		},
	}
}

// publishRelease uploads a release directory, streaming the artifacts.
func publishRelease(ctx context.Context, c *client, d release.Dir, progress io.Writer, out *apiRelease) error {
	var total int64
	for _, a := range d.Parsed.Artifacts {
		total += a.Size
	}
	return c.try(ctx, false, func(addr string) error {
		body, w := io.Pipe()
		defer func() { _ = body.Close() }() // ends writeRelease too; it never fails
		form := multipart.NewWriter(w)
		meter := &uploadMeter{w: progress, total: total}
		go func() { w.CloseWithError(writeRelease(form, d, meter)) }()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, addr+"/api/releases", body)
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", form.FormDataContentType())
		return c.do(req, out)
	})
}

func writeRelease(form *multipart.Writer, d release.Dir, meter *uploadMeter) error {
	for _, p := range []struct {
		name    string
		content []byte
	}{{"manifest", d.Manifest}, {"signature", d.Signature}} {
		part, err := form.CreateFormFile(p.name, p.name)
		if err != nil {
			return err
		}
		if _, err := part.Write(p.content); err != nil {
			return err
		}
	}
	for _, a := range d.Parsed.Artifacts {
		path := d.ArtifactPath(a)
		part, err := form.CreateFormFile("artifact", filepath.Base(path))
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(part, io.TeeReader(f, meter))
		f.Close()
		if err != nil {
			return err
		}
	}
	meter.end()
	return form.Close()
}

// uploadMeter shows the progress of an upload on a terminal.
type uploadMeter struct {
	w           io.Writer
	done, total int64
	shown       time.Time
}

func (m *uploadMeter) Write(b []byte) (int, error) {
	m.done += int64(len(b))
	if f, ok := m.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && m.total > 0 && time.Since(m.shown) > 100*time.Millisecond {
		m.shown = time.Now()
		fmt.Fprintf(m.w, "\r\x1b[Kuploading %s", progressBar(m.done, m.total))
	}
	return len(b), nil
}

func (m *uploadMeter) end() {
	if !m.shown.IsZero() {
		fmt.Fprintf(m.w, "\r\x1b[Kuploaded %s; waiting until a majority of the servers hold it\n", nodekit.ByteCount(m.done))
	}
}
