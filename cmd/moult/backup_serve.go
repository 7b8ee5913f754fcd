package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"moult/consensus/backup"
	"moult/consensus/fleet"
	"moult/updater/artifact"
)

// backups writes backups of the state, and of the bytes that this server holds.
type backups struct {
	store  *artifact.Store
	server string // this one's name
}

// Backup checks that the recipient is a key, and that the bytes asked for are here.
func (b *backups) Backup(v fleet.View, recipient string, releases bool) (func(context.Context, io.Writer) error, error) {
	key, err := backup.ParseRecipient(recipient)
	if err != nil {
		return nil, &fleet.Error{Code: fleet.CodeBadRequest, Message: "recipient: " + err.Error()}
	}
	h := backup.Header{TakenAt: time.Now().UTC(), Server: b.server, Moult: version, Artifacts: []backup.Artifact{}}
	if releases {
		h.Artifacts = backup.Wanted(v)
	}
	for _, a := range h.Artifacts {
		if err := b.holds(a); err != nil {
			return nil, &fleet.Error{Code: fleet.CodeConflict, Message: fmt.Sprintf("this server lacks bytes of a release (%v); it gets them from the others within a minute: try again, ask another server, or leave the releases out", err)}
		}
	}
	return func(ctx context.Context, w io.Writer) error {
		enc, err := key.Encrypt(w)
		if err != nil {
			return err
		}
		err = backup.Write(whileContext{ctx, enc}, h, v, func(digest string) (io.ReadCloser, error) {
			f, _, err := b.store.Open(digest)
			return f, err
		})
		if err != nil {
			return err
		}
		return enc.Close()
	}, nil
}

func (b *backups) holds(a backup.Artifact) error {
	f, size, err := b.store.Open(a.SHA256)
	if err != nil {
		return fmt.Errorf("artifact %s: %w", a.SHA256, err)
	}
	f.Close()
	if size != a.Size {
		return fmt.Errorf("artifact %s has %d bytes, not %d", a.SHA256, size, a.Size)
	}
	return nil
}

// whileContext writes until its context ends.
type whileContext struct {
	ctx context.Context
	w   io.Writer
}

func (c whileContext) Write(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(b)
}
