package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"moult/cmd/internal/nodekit"
	"moult/updater/release"
)

// apiReleaseKeys is the API's answer about the release keys.
type apiReleaseKeys struct {
	Cluster     string   `json:"cluster"`
	Number      uint64   `json:"number"`
	Threshold   int      `json:"threshold"`
	Keys        []string `json:"keys"`
	HostsBehind []string `json:"hosts_behind"`
}

func (c *client) releaseKeys(ctx context.Context) (out apiReleaseKeys, err error) {
	err = c.call(ctx, http.MethodGet, "/api/release-keys", nil, &out)
	return out, err
}

// rotation is what `moult key rotate` is told.
type rotation struct {
	key, passwordFile string
	add, keep, remove []string // public key files
	threshold         int
	number            uint64
	cluster           string
	out               string
	force             bool
}

func newKeyRotateCommand(f *clientFlags) *cobra.Command {
	var r rotation
	cmd := &cobra.Command{
		Use:   "rotate --key OLD.key [--add NEW.pub] [--remove OLD.pub] [--keep OTHER.pub] --out FILE",
		Short: "State which keys sign releases from now on, signed by a present one",
		Long: `Write a key statement: the keys that sign releases from now on. It is signed by
a present key, so that every host can verify it for itself; no server can make one.

The new set is the key of --key, those of --keep and those of --add, without those
of --remove. A present key that none of them names stops the command: a server's
word alone adds no key. Number and cluster are asked of a server, or given with
--number and --cluster on a machine that reaches none.

Where more than one key has to sign: moult key sign FILE --key SECOND.key
Then bring it to the hosts:          moult key publish FILE`,
		Example: `  moult key rotate --key release.key --add next.key.pub --out keys.json            # a second key
  moult key rotate --key next.key --remove release.key.pub --out keys.json         # the first one goes
  moult key rotate --key a.key --keep b.key.pub --threshold 2 --out keys.json      # two have to sign`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.key == "" || r.out == "" {
				return errors.New("--key and --out have to be given")
			}
			return r.run(cmd, f)
		},
	}
	cmd.Flags().StringVar(&r.key, "key", "", "file with the secret key that signs the statement: a present one")
	cmd.Flags().StringVar(&r.passwordFile, "password-file", "", "file whose first line is the key's password")
	cmd.Flags().StringArrayVar(&r.add, "add", nil, "file with a public key that comes in; may be repeated")
	cmd.Flags().StringArrayVar(&r.keep, "keep", nil, "file with a present public key that stays; may be repeated")
	cmd.Flags().StringArrayVar(&r.remove, "remove", nil, "file with a public key that goes; may be repeated")
	cmd.Flags().IntVar(&r.threshold, "threshold", 0, "how many of the keys have to sign from now on (default: as many as now)")
	cmd.Flags().Uint64Var(&r.number, "number", 0, "of the statement: one more than the last one's (default: asked of a server)")
	cmd.Flags().StringVar(&r.cluster, "cluster", "", "the cluster's id (default: asked of a server)")
	cmd.Flags().StringVar(&r.out, "out", "", "file to write; the signature goes beside it as FILE.minisig")
	cmd.Flags().BoolVar(&r.force, "force", false, "overwrite existing files")
	return cmd
}

func (r *rotation) run(cmd *cobra.Command, f *clientFlags) error {
	secret, err := secretKey(cmd, r.key, r.passwordFile)
	if err != nil {
		return err
	}
	own, err := release.PublicKeyOf(secret)
	if err != nil {
		return fmt.Errorf("--key %s: %w", r.key, err)
	}
	keys, removed, err := r.keys(own)
	if err != nil {
		return err
	}
	present, err := r.present(cmd.Context(), f)
	if err != nil {
		return err
	}
	if err := vouched(present.Keys, own, keys, removed); err != nil {
		return err
	}
	threshold := r.threshold
	if threshold == 0 {
		threshold = max(present.Threshold, 1)
	}
	signed, err := release.SignStatement(secret, release.Statement{
		Cluster: present.Cluster, Number: present.Number + 1, Threshold: threshold, Keys: keys, Created: time.Now(),
	})
	if err != nil {
		return err
	}
	for _, file := range []struct{ path, text string }{{r.out, string(signed.Statement)}, {signatureOf(r.out), string(signed.Signature)}} {
		if err := writeNew(file.path, file.text, 0o644, r.force); err != nil {
			return err
		}
	}
	if asJSON(cmd) {
		return printJSON(cmd.OutOrStdout(), map[string]any{
			"file": r.out, "cluster": present.Cluster, "number": present.Number + 1, "threshold": threshold, "keys": keys, "signatures_needed": max(present.Threshold, 1),
		})
	}
	w := cmd.ErrOrStderr()
	fmt.Fprintf(w, "statement %d: from then on %d of these keys sign releases:\n", present.Number+1, threshold)
	for _, k := range keys {
		fmt.Fprintf(w, "  %s\n", k)
	}
	if present.Threshold > 1 {
		fmt.Fprintf(w, "%d of the present keys have to sign it; add a signature with: moult key sign %s --key OTHER.key\n", present.Threshold, r.out)
	}
	fmt.Fprintf(w, "bring it to the hosts with: moult key publish %s\n", r.out)
	return nil
}

// keys reads the key files: the new set, and what is taken out of the present one.
func (r *rotation) keys(own string) (keys, removed []string, err error) {
	if removed, err = publicKeys("--remove", r.remove); err != nil {
		return nil, nil, err
	}
	kept, err := publicKeys("--keep", r.keep)
	if err != nil {
		return nil, nil, err
	}
	added, err := publicKeys("--add", r.add)
	if err != nil {
		return nil, nil, err
	}
	for _, k := range slices.Concat([]string{own}, kept, added) {
		if !slices.Contains(removed, k) && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, nil, errors.New("no key would be left; name the one that signs from now on with --add")
	}
	return keys, removed, nil
}

func publicKeys(flag string, paths []string) (keys []string, err error) {
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", flag, err)
		}
		key, err := release.ParsePublicKey(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", flag, path, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// present is the keys of today: as a server tells, or, where number and cluster
// are given, only those two.
func (r *rotation) present(ctx context.Context, f *clientFlags) (apiReleaseKeys, error) {
	if r.number > 0 && r.cluster != "" {
		return apiReleaseKeys{Cluster: r.cluster, Number: r.number - 1, Threshold: r.threshold}, nil
	}
	c, err := f.client()
	if err != nil {
		return apiReleaseKeys{}, err
	}
	out, err := c.releaseKeys(ctx)
	if err != nil {
		return apiReleaseKeys{}, fmt.Errorf("ask for the present keys: %w; without a server give --number, --cluster and --threshold", err)
	}
	if r.number > 0 {
		out.Number = r.number - 1
	}
	if r.cluster != "" && r.cluster != out.Cluster {
		return apiReleaseKeys{}, fmt.Errorf("--cluster %s: the servers are of cluster %s", r.cluster, out.Cluster)
	}
	return out, nil
}

// vouched refuses a set of present keys, as a server tells it, in which is one
// that the person did not name: it could be anybody's.
func vouched(present []string, own string, keys, removed []string) error {
	if len(present) == 0 {
		return nil
	}
	if !slices.Contains(present, own) {
		return errors.New("--key: the cluster does not know this key, so its signature would change nothing; sign with a present one (`moult key list`)")
	}
	for _, k := range present {
		if !slices.Contains(keys, k) && !slices.Contains(removed, k) {
			return fmt.Errorf("the servers name a present key %s that you did not; give its file with --keep if it is yours, else with --remove", k)
		}
	}
	return nil
}

func newKeySignCommand() *cobra.Command {
	var key, passwordFile string
	cmd := &cobra.Command{
		Use:   "sign FILE --key KEY",
		Short: "Add a signature to a key statement",
		Long: `Add a signature to a key statement, where more than one key has to sign. The stock
minisign can do so too: minisign -Sm FILE -s KEY -x MORE, then cat MORE >> FILE.minisig`,
		Example: "  moult key sign keys.json --key second.key",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return addSignature(cmd, args[0], key, passwordFile)
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "file with the secret key")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "file whose first line is the key's password")
	return cmd
}

func signatureOf(path string) string { return path + ".minisig" }

// addSignature adds a key's signature to the one beside a file.
func addSignature(cmd *cobra.Command, path, key, passwordFile string) error {
	if key == "" {
		return errors.New("--key has to be given")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read what is to be signed: %w", err)
	}
	signature, err := os.ReadFile(signatureOf(path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	secret, err := secretKey(cmd, key, passwordFile)
	if err != nil {
		return err
	}
	more, err := release.AddSignature(secret, text, signature)
	if err != nil {
		return fmt.Errorf("sign %s: %w", path, err)
	}
	if err := nodekit.WriteFileAtomic(signatureOf(path), more, 0o644); err != nil {
		return err
	}
	n := strings.Count(string(more), "untrusted comment:")
	return done(cmd, map[string]any{"file": path, "signatures": n}, "%s bears %d signatures", path, n)
}

func newKeyPublishCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "publish FILE",
		Short: "Bring a key statement to the hosts",
		Long: `Bring a key statement to the hosts, through the servers. Each host verifies it with
the keys that it has pinned and writes it down; ` + "`moult key list`" + ` names those that have not yet.`,
		Example: "  moult key publish keys.json",
		Args:    cobra.ExactArgs(1),
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			statement, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read key statement: %w; make one with: moult key rotate", err)
			}
			signature, err := os.ReadFile(signatureOf(args[0]))
			if err != nil {
				return fmt.Errorf("the key statement is not signed: %w; sign it with: moult key sign %s", err, args[0])
			}
			var out apiReleaseKeys
			in := map[string]string{"statement": string(statement), "signature": string(signature)}
			if err := c.call(cmd.Context(), http.MethodPost, "/api/release-keys", in, &out); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "published key statement %d; see which hosts follow it with: moult key list\n", out.Number)
			return nil
		}),
	}
}

func newKeyListCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the keys that sign releases", Args: cobra.NoArgs,
		Example: "  moult key list",
		RunE: f.run(func(cmd *cobra.Command, c *client, _ []string) error {
			out, err := c.releaseKeys(cmd.Context())
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			w := cmd.ErrOrStderr()
			fmt.Fprintf(w, "cluster %s, key statement %d: %d of these have to sign\n", out.Cluster, out.Number, out.Threshold)
			for _, name := range out.HostsBehind {
				fmt.Fprintf(w, "%s has not said yet that it follows statement %d\n", printable(name), out.Number)
			}
			for _, k := range out.Keys {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), printable(k)); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}
