package webui

import (
	"context"
	"io"
	"net/http"
	"time"

	"moult/consensus/fleet"
)

const (
	// maxBackups bounds the backups that a server writes at a time.
	maxBackups = 2
	// backupStall is how long whoever gets a backup may take nothing of it.
	backupStall = time.Minute
)

// Backups writes backups of the state. A refusal is an *fleet.Error.
type Backups interface {
	// Backup checks what is asked for and returns what writes it, encrypted to the
	// recipient's public key.
	Backup(v fleet.View, recipient string, releases bool) (write func(ctx context.Context, w io.Writer) error, err error)
}

// getBackup streams a backup. That somebody gets one is committed first, for it
// holds the CA's key; having committed something also means that this server's
// state has everything that was acknowledged before.
func (u *ui) getBackup(w http.ResponseWriter, r *http.Request) error {
	recipient := r.URL.Query().Get("recipient")
	if recipient == "" {
		return badRequest("recipient: give the public key (age1…) that the backup is encrypted to; `moult server backup FILE` does all of it")
	}
	choice, err := queryChoice(r, "releases", "true", "false")
	if err != nil {
		return err
	}
	if err := u.readyOrElse(); err != nil {
		return err
	}
	if !u.backups.take() {
		return refuse(codeBusy, "this server writes as many backups as it does at a time; try again, or ask another one")
	}
	defer u.backups.give()
	releases := choice == "true"
	if _, err := u.Backups.Backup(u.View(), recipient, releases); err != nil {
		return err // before anything is committed
	}
	if err := u.propose(r, fleet.BackupTaken{Releases: releases, Recipient: recipient}); err != nil {
		return err
	}
	write, err := u.Backups.Backup(u.View(), recipient, releases)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="moult.backup"`)
	if err := write(r.Context(), &impatientWriter{w: w, rc: http.NewResponseController(w)}); err != nil {
		u.Logger.Warn("backup", "actor", callerOf(r).Actor, "error", err)
		panic(http.ErrAbortHandler) // the other side must not take what it got for all of it
	}
	u.Logger.Info("backup taken", "actor", callerOf(r).Actor, "releases", releases)
	return nil
}

// impatientWriter gives up on a reader that takes nothing for backupStall.
type impatientWriter struct {
	w  io.Writer
	rc *http.ResponseController
}

func (i *impatientWriter) Write(b []byte) (int, error) {
	_ = i.rc.SetWriteDeadline(time.Now().Add(backupStall)) // not supported by recorders in tests
	return i.w.Write(b)
}
