package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"moult/updater/release"
)

func newKeyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "Make the key that signs releases"}
	var out string
	var force, lock bool
	generate := &cobra.Command{
		Use:   "generate",
		Short: "Make a release key pair (minisign format)",
		Long: `Make a release key pair in minisign's format.

The secret key signs releases: keep it off the servers. The public key is pinned
by every host when it joins: give it to the first server with --release-key.`,
		Example: "  moult key generate --out release.key\n  moult server --bootstrap --release-key release.key.pub …",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			public, secret, err := release.GenerateKey()
			if err != nil {
				return err
			}
			if lock {
				password, err := readNewPassword(cmd)
				if err != nil {
					return err
				}
				if secret, err = release.LockKey(secret, password); err != nil {
					return err
				}
			}
			if err := writeNew(out, secret, 0o600, force); err != nil {
				return err
			}
			if err := writeNew(out+".pub", public, 0o644, force); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "secret key: %s\npublic key: %s.pub\n", out, out)
			_, err = fmt.Fprint(cmd.OutOrStdout(), public)
			return err
		},
	}
	generate.Flags().StringVarP(&out, "out", "o", "release.key", "where the secret key goes; the public key goes beside it as FILE.pub")
	generate.Flags().BoolVar(&lock, "lock", false, "put the secret key under a password")
	generate.Flags().BoolVar(&force, "force", false, "overwrite existing files")
	cmd.AddCommand(generate)
	return cmd
}

// writeNew writes a file that must not exist unless force.
func writeNew(path, text string, mode os.FileMode, force bool) error {
	flag := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flag = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(filepath.Clean(path), flag, mode)
	if os.IsExist(err) {
		return fmt.Errorf("%s exists; name another file with --out, or give --force to overwrite it", path)
	}
	if err != nil {
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
