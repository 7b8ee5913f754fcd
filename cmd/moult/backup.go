package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"moult/cmd/internal/nodekit"
	"moult/consensus/backup"
)

// backupKeys are the flags that say what a backup is encrypted with.
type backupKeys struct {
	recipient, identity, passphraseFile string
}

func (k *backupKeys) registerPassphrase(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.passphraseFile, "passphrase-file", "", "file that holds the backup's passphrase (default: it is asked for, or read from standard input)")
}

// toWrite returns the key that a new backup is encrypted with.
func (k *backupKeys) toWrite(cmd *cobra.Command) (backup.Key, error) {
	if k.recipient != "" && k.passphraseFile != "" {
		return backup.Key{}, errors.New("--recipient and --passphrase-file are both given; give one")
	}
	if k.recipient != "" {
		key, err := backup.ParseRecipient(k.recipient)
		if err != nil {
			return key, fmt.Errorf("--recipient: %w", err)
		}
		return key, nil
	}
	return k.passphrase(func() (string, error) { return readNewSecret(cmd, "Passphrase of the backup") })
}

// toRead returns the key that opens a backup.
func (k *backupKeys) toRead(cmd *cobra.Command) (backup.Key, error) {
	if k.identity != "" && k.passphraseFile != "" {
		return backup.Key{}, errors.New("--identity and --passphrase-file are both given; give one")
	}
	if k.identity != "" {
		text, err := os.ReadFile(k.identity)
		if err != nil {
			return backup.Key{}, fmt.Errorf("read --identity: %w", err)
		}
		key, err := backup.ParseIdentity(string(text))
		if err != nil {
			return key, fmt.Errorf("--identity %s: %w", k.identity, err)
		}
		return key, nil
	}
	return k.passphrase(func() (string, error) { return readPassword(cmd, "Passphrase of the backup: ") })
}

func (k *backupKeys) passphrase(ask func() (string, error)) (backup.Key, error) {
	if k.passphraseFile != "" {
		text, err := os.ReadFile(k.passphraseFile)
		if err != nil {
			return backup.Key{}, fmt.Errorf("read --passphrase-file: %w", err)
		}
		key, err := backup.Passphrase(strings.TrimRight(string(text), "\r\n"))
		if err != nil {
			return key, fmt.Errorf("--passphrase-file %s: %w", k.passphraseFile, err)
		}
		return key, nil
	}
	text, err := ask()
	if err != nil {
		return backup.Key{}, err
	}
	return backup.Passphrase(text)
}

func newServerBackupCommand() *cobra.Command {
	var f clientFlags
	var keys backupKeys
	var releases bool
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a backup of the running cluster, encrypted",
		Long: `Write a backup of the running cluster into a file: all that was decided, users and
API tokens, and the keys of the cluster, among them that of its CA. Whoever can open
it can become a server of the cluster; keep it and its passphrase apart. It is taken
from whichever server answers, with an admin's API token, and noted in the audit.

It is encrypted with a passphrase, or with --recipient to a public key of age
(age-keygen makes a pair). The file is verified as it is written, and appears under
its name when it is whole.

Restore it with: moult server restore FILE`,
		Example: `  moult server backup moult-$(date +%F).backup --with-releases
  moult server backup /backup/moult.backup --recipient age1…`,
		Args: cobra.ExactArgs(1),
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			key, err := keys.toWrite(cmd)
			if err != nil {
				return err
			}
			h, size, err := takeBackup(cmd.Context(), c, args[0], key, releases, cmd.ErrOrStderr())
			if err != nil {
				return fmt.Errorf("back up: %w", err)
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"file": args[0], "size": size, "backup": h})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s, the cluster %s at index %d, with the bytes of %d artifacts; from %s\n",
				args[0], nodekit.ByteCount(size), h.ClusterID, h.Index, len(h.Artifacts), printable(h.Server))
			return nil
		}),
	}
	f.register(cmd)
	keys.registerPassphrase(cmd)
	cmd.Flags().StringVar(&keys.recipient, "recipient", "", "public key of age (age1…) to encrypt to, instead of a passphrase")
	cmd.Flags().BoolVar(&releases, "with-releases", false, "with the bytes of the releases; else a restored cluster gets them from agents that still hold them")
	return cmd
}

// takeBackup gets a backup, encrypted to a key that is made for the purpose and
// forgotten, verifies it, and writes it to path encrypted with key.
func takeBackup(ctx context.Context, c *client, path string, key backup.Key, releases bool, progress io.Writer) (h backup.Header, size int64, err error) {
	once, public, err := backup.NewKey()
	if err != nil {
		return h, 0, err
	}
	query := url.Values{"recipient": {public}}
	if releases {
		query.Set("releases", "true")
	}
	err = c.try(ctx, true, func(addr string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/api/backup?"+query.Encode(), nil)
		if err != nil {
			return err
		}
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode >= 400 {
			return readAPIError(resp)
		}
		meter := &byteMeter{w: progress, doing: "backing up"}
		defer meter.end()
		return nodekit.ReplaceFile(path, 0o600, func(w io.Writer) error {
			h, size, err = reencrypt(io.TeeReader(resp.Body, meter), once, w, key)
			return err
		})
	})
	return h, size, err
}

// reencrypt verifies a backup on its way from one key to another.
func reencrypt(from io.Reader, once backup.Key, to io.Writer, key backup.Key) (h backup.Header, size int64, err error) {
	plain, err := once.Decrypt(from)
	if err != nil {
		return h, 0, err
	}
	counted := &countingWriter{w: to}
	enc, err := key.Encrypt(counted)
	if err != nil {
		return h, 0, err
	}
	if h, err = backup.Read(io.TeeReader(plain, enc), backup.Contents{}); err != nil {
		return h, 0, fmt.Errorf("the server's answer broke off, or is not whole; look at its log, and try again: %w", err)
	}
	if err := enc.Close(); err != nil {
		return h, 0, err
	}
	return h, counted.n, nil
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// byteMeter shows on a terminal how much has gone by.
type byteMeter struct {
	w     io.Writer
	doing string
	done  int64
	shown time.Time
}

func (m *byteMeter) Write(b []byte) (int, error) {
	m.done += int64(len(b))
	if f, ok := m.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && time.Since(m.shown) > 100*time.Millisecond {
		m.shown = time.Now()
		fmt.Fprintf(m.w, "\r\x1b[K%s: %s", m.doing, nodekit.ByteCount(m.done))
	}
	return len(b), nil
}

func (m *byteMeter) end() {
	if !m.shown.IsZero() {
		fmt.Fprint(m.w, "\r\x1b[K")
	}
}
