package fleet

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/hashicorp/go-memdb"
)

// A snapshot is lines of JSON: a header, then a line per row, tables in a fixed
// order and rows in the order of their keys, then a trailer with the number of
// rows and the sha256 of all bytes before it. Equal states give equal bytes,
// which is what Hash relies on.
type (
	snapshotHeader struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	snapshotRow struct {
		Table string          `json:"t,omitempty"`
		Row   json.RawMessage `json:"r,omitempty"`
		// The trailer has these instead.
		Rows   int    `json:"rows,omitempty"`
		SHA256 string `json:"sha256,omitempty"`
	}
)

// What is around a row and its table, as encoding/json writes a snapshotRow.
var (
	rowBegin  = []byte(`{"t":"`)
	rowMiddle = []byte(`","r":`)
	rowEnd    = []byte("}\n")
)

const (
	snapshotFormat  = "moult-fleet"
	snapshotVersion = 1
)

// Snapshot writes the state as of the view.
func (v View) Snapshot(w io.Writer) error {
	digest := sha256.New()
	buf := bufio.NewWriter(io.MultiWriter(w, digest))
	enc := json.NewEncoder(buf)
	if err := enc.Encode(snapshotHeader{snapshotFormat, snapshotVersion}); err != nil {
		return err
	}
	rows := 0
	for _, table := range tables {
		it, err := v.txn.Get(table, "id")
		must(err)
		for raw := it.Next(); raw != nil; raw = it.Next() {
			row, err := json.Marshal(raw)
			if err != nil {
				return fmt.Errorf("encode %s: %w", table, err)
			}
			// As an encoder writes a snapshotRow, without reading the row again.
			for _, part := range [][]byte{rowBegin, []byte(table), rowMiddle, row, rowEnd} {
				if _, err := buf.Write(part); err != nil {
					return err
				}
			}
			rows++
		}
	}
	if err := buf.Flush(); err != nil { // the digest has what was flushed
		return err
	}
	return json.NewEncoder(w).Encode(snapshotRow{Rows: rows, SHA256: hex.EncodeToString(digest.Sum(nil))})
}

// Snapshot writes the present state.
func (s *State) Snapshot(w io.Writer) error { return s.View().Snapshot(w) }

// Hash returns the sha256 of the state, in hex: equal on all servers at equal
// index.
func (s *State) Hash() string { return s.View().Hash() }

// Hash returns the sha256 of the state as of the view, in hex.
func (v View) Hash() string {
	h := sha256.New()
	must(v.Snapshot(h)) // a hash takes every byte; rows are plain values
	return hex.EncodeToString(h.Sum(nil))
}

// ErrSnapshot is wrapped by what Restore returns for bytes that are not a whole
// snapshot that this version can read.
var ErrSnapshot = errors.New("read snapshot")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w; take another snapshot or backup", ErrSnapshot, fmt.Errorf(format, args...))
}

// Restore replaces the state by a snapshot. It reads a row at a time; on an
// error, which wraps ErrSnapshot, the state is as before. Subscribers are told
// that everything changed.
func (s *State) Restore(r io.Reader) error {
	db := newDB()
	txn := db.Txn(true)
	defer txn.Abort()
	if err := restoreAll(txn, snapshotReader{in: bufio.NewReaderSize(r, 64<<10), digest: sha256.New()}); err != nil {
		return err
	}
	txn.Commit()
	s.mu.Lock()
	s.db = db
	s.mu.Unlock()
	s.subscribers.publish(Event{Index: s.View().Index(), Topics: []string{"*"}})
	return nil
}

// snapshotReader reads lines and keeps the digest of those before the present one.
type snapshotReader struct {
	in     *bufio.Reader
	digest hash.Hash
	last   []byte
}

// line returns the next line. A row has no largest size: what Snapshot could
// write, Restore must be able to read.
func (r *snapshotReader) line(into any) error {
	r.digest.Write(r.last)
	line, err := r.in.ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF // every line ends with a newline, the trailer too
	}
	if err != nil {
		return err
	}
	r.last = line
	return decodeOne(line, into)
}

func restoreAll(txn *memdb.Txn, r snapshotReader) error {
	var header snapshotHeader
	if err := r.line(&header); err != nil {
		return damaged("its first line: %w", err)
	}
	if header.Format != snapshotFormat {
		return damaged("this is not a snapshot of moult")
	}
	if header.Version != snapshotVersion {
		return fmt.Errorf("%w: version %d is not known here; run a newer moult", ErrSnapshot, header.Version)
	}
	read := map[string]int{} // rows by table
	for rows := 0; ; rows++ {
		var row snapshotRow
		if err := r.line(&row); err != nil {
			return damaged("after %d rows: %w", rows, err)
		}
		if row.Table == "" {
			if sum := hex.EncodeToString(r.digest.Sum(nil)); row.Rows != rows || row.SHA256 != sum {
				return damaged("it has %d rows with the sha256 %s, its end says %d and %q", rows, sum, row.Rows, row.SHA256)
			}
			break
		}
		if err := restoreRow(txn, row); err != nil {
			return damaged("row %d of table %q: %w", rows+1, row.Table, err)
		}
		read[row.Table]++
	}
	if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
		return damaged("bytes after its end")
	}
	if n := read[tableMeta]; n != 1 {
		return damaged("it has %d rows of meta, not one", n)
	}
	if err := checkRows(txn, read); err != nil {
		return err
	}
	v := View{txn: txn}
	m := v.meta()
	m.size = measured(v, read)
	return txn.Insert(tableMeta, m)
}

// checkRows tells whether each row that was read has a place of its own in each
// unique index: of two with one key, or one name, the table would keep the last.
func checkRows(txn *memdb.Txn, read map[string]int) error {
	for _, table := range tables { // in this order, for the error's sake
		for name, index := range schema().Tables[table].Indexes {
			if !index.Unique {
				continue
			}
			it, err := txn.Get(table, name)
			must(err)
			rows := 0
			for it.Next() != nil {
				rows++
			}
			if rows != read[table] {
				return damaged("table %q has %d rows of which %d differ in %s", table, read[table], rows, name)
			}
		}
	}
	return nil
}

func restoreRow(txn *memdb.Txn, row snapshotRow) error {
	insert, ok := restorers[row.Table]
	if !ok {
		return fmt.Errorf("the table is not known here: run a newer moult")
	}
	return insert(txn, row)
}

var restorers = map[string]func(*memdb.Txn, snapshotRow) error{
	tableMeta:          restore[metaRow],
	tableHosts:         restore[Host],
	tableReleases:      restore[Release],
	tableFleetUpdates:  restore[fleetUpdateRow],
	tableJobs:          restore[jobRow],
	tableJobLines:      restore[lineRow],
	tableAlerts:        restore[alertRow],
	tableAudit:         restore[AuditEntry],
	tableUsers:         restore[User],
	tableAPITokens:     restore[APIToken],
	tableJoinTokens:    restore[JoinToken],
	tableSessions:      restore[Session],
	tableProposals:     restore[proposalRow],
	tableWebhooks:      restore[Webhook],
	tableNotifications: restore[Notification],
	tableLogins:        restore[loginRow],
	tableDenied:        restore[DeniedHost],
	tableGossipRings:   restore[GossipRing],
}

func restore[T any](txn *memdb.Txn, row snapshotRow) error {
	var v T
	if err := decodeOne(row.Row, &v); err != nil {
		return err
	}
	return txn.Insert(row.Table, v)
}
