package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"moult/updater/release"
)

func newKeyCommand() *cobra.Command {
	var f clientFlags
	cmd := &cobra.Command{
		Use: "key", Short: "Make and change the keys that sign releases",
		Example: "  moult key generate --out release.key\n  moult key list",
	}
	f.register(cmd)
	cmd.AddCommand(newKeyGenerateCommand(), newKeyRotateCommand(&f), newKeySignCommand(), newKeyPublishCommand(&f), newKeyListCommand(&f))
	return cmd
}

func newKeyGenerateCommand() *cobra.Command {
	var out, passwordFile string
	var force, lock, unlocked bool
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Make a release key pair (minisign format)",
		Long: `Make a release key pair in minisign's format.

The secret key signs releases: keep it off the servers. On a terminal it is put
under a password, which is asked for twice; in a script only with --password-file, or
with --lock, which reads the password from standard input. --no-password leaves it
as it is, for a machine that signs by itself. The public key is pinned by every host when it joins: give it to the first server with
--release-key.`,
		Example: "  moult key generate --out release.key\n  moult server --data /var/lib/moult --name s1 --bootstrap --release-key release.key.pub",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if unlocked && (lock || passwordFile != "") {
				return errors.New("--no-password is given beside a password; leave one of them out")
			}
			open := unlocked || !lock && passwordFile == "" && !onTerminal(cmd)
			public, secret, err := release.GenerateKey()
			if err != nil {
				return err
			}
			if !force { // before a password is asked for
				if _, err := os.Lstat(out); err == nil {
					return existsAlready(out)
				}
			}
			if !open {
				password, err := newKeyPassword(cmd, passwordFile)
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
			if asJSON(cmd) {
				return printJSON(cmd.OutOrStdout(), map[string]any{"secret_key_file": out, "public_key_file": out + ".pub", "public_key": strings.TrimSpace(public), "password": !open})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "secret key: %s\npublic key: %s.pub\n", out, out)
			if open && !unlocked {
				fmt.Fprintln(cmd.ErrOrStderr(), "the secret key has no password: whoever reads the file can sign; --password-file gives it one")
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), public)
			return err
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "release.key", "where the secret key goes; the public key goes beside it as FILE.pub")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "file whose first line is the password")
	cmd.Flags().BoolVar(&unlocked, "no-password", false, "leave the secret key without a password: whoever reads the file can sign")
	cmd.Flags().BoolVar(&lock, "lock", false, "put the secret key under a password, in a script too")
	cmd.Flags().BoolVar(&force, "force", false, "overwrite existing files")
	return cmd
}

func newKeyPassword(cmd *cobra.Command, file string) (string, error) {
	if file != "" {
		return passwordFrom(file)
	}
	password, err := readNewPassword(cmd)
	if errors.Is(err, errNoPassword) {
		err = fmt.Errorf("%w; or give --password-file, or --no-password for a key that anybody can use who reads the file", err)
	}
	return password, err
}

// secretKey reads a secret key file and unlocks it: with the password in
// passwordFile, else one that is asked for.
func secretKey(cmd *cobra.Command, path, passwordFile string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read --key: %w; make one with: moult key generate", err)
	}
	secret := string(text)
	if !release.KeyLocked(secret) {
		return secret, nil
	}
	password := ""
	if passwordFile != "" {
		password, err = passwordFrom(passwordFile)
	} else {
		password, err = readPassword(cmd, "Password of "+path+": ")
	}
	if err != nil {
		return "", err
	}
	if secret, err = release.UnlockKey(secret, password); err != nil {
		return "", fmt.Errorf("--key %s: %w", path, err)
	}
	return secret, nil
}

func existsAlready(path string) error {
	return fmt.Errorf("%s exists; name another file with --out, or give --force to overwrite it", path)
}

// writeNew writes a file that must not exist unless force.
func writeNew(path, text string, mode os.FileMode, force bool) error {
	flag := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flag = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(filepath.Clean(path), flag, mode)
	if os.IsExist(err) {
		return existsAlready(path)
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
