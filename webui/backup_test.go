package webui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"moult/consensus/fleet"
)

// backups writes something that tells what was asked for.
type backups struct {
	fail        error // after the first bytes
	begun, hold chan struct{}
}

func (b *backups) Backup(v fleet.View, recipient string, releases bool) (func(context.Context, io.Writer) error, error) {
	if recipient != "age1good" {
		return nil, badRequest("recipient: %q is no key", recipient)
	}
	return func(ctx context.Context, w io.Writer) error {
		fmt.Fprintf(w, "at %d for %s, releases %t", v.Index(), recipient, releases)
		if b.hold != nil {
			b.begun <- struct{}{}
			<-b.hold
		}
		return errors.Join(b.fail, ctx.Err())
	}, nil
}

// Who gets a backup gets the CA's key: it is in the audit before the first byte is
// sent, and the backup has that entry.
func TestBackupIsAudited(t *testing.T) {
	w := StartWorld(t)
	for query, releases := range map[string]bool{"": false, "&releases=false": false, "&releases=true": true} {
		a := w.Admin("GET", "/api/backup?recipient=age1good"+query, "")
		newest := w.state.View().Audit(0, 1)[0]
		if a.Code != http.StatusOK || a.Body.String() != fmt.Sprintf("at %d for age1good, releases %t", newest.Index, releases) {
			t.Errorf("%s: %d %s", query, a.Code, a.Body)
		}
		if newest.Action != "backup_taken" || newest.Actor != "token:bootstrap" || !strings.Contains(newest.Detail, "age1good") || strings.Contains(newest.Detail, "without") == releases {
			t.Errorf("%s: audit %+v", query, newest)
		}
	}
}

func TestBackupRefusals(t *testing.T) {
	w := StartWorld(t)
	before := w.state.View().Index()
	for query, field := range map[string]string{"": "recipient", "?recipient=passphrase": "recipient", "?recipient=age1good&releases=all": "releases"} {
		if m := w.Admin("GET", "/api/backup"+query, "").Refused(http.StatusBadRequest, "bad_request"); !strings.HasPrefix(m, field) {
			t.Errorf("%s: %s", query, m)
		}
	}
	w.ready = errors.New("catching up with the leader")
	w.Admin("GET", "/api/backup?recipient=age1good", "").Refused(http.StatusServiceUnavailable, "not_ready")
	w.ready = nil
	if w.state.View().Index() != before {
		t.Error("a refused backup changed the state")
	}
	w.log.fail = errors.New("no leader")
	w.Admin("GET", "/api/backup?recipient=age1good", "").Refused(http.StatusServiceUnavailable, "unavailable")
}

// What breaks off must not look like a whole backup.
func TestBackupThatFailsEndsTheConnection(t *testing.T) {
	w := StartWorld(t)
	w.backups.fail = errors.New("the disk failed")
	srv := httptest.NewServer(w.handler)
	defer srv.Close()
	r, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/api/backup?recipient=age1good", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+adminToken)
	resp, err := srv.Client().Do(r)
	if err != nil {
		return // cut off before its head was sent
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("it ended in good order: %d %q", resp.StatusCode, text)
	}
}

func TestBackupsAtATimeAreBounded(t *testing.T) {
	w := StartWorld(t)
	w.backups.hold, w.backups.begun = make(chan struct{}), make(chan struct{})
	done := make(chan int)
	for range maxBackups {
		go func() { done <- w.Admin("GET", "/api/backup?recipient=age1good", "").Code }()
	}
	for range maxBackups {
		<-w.backups.begun
	}
	w.Admin("GET", "/api/backup?recipient=age1good", "").Refused(http.StatusServiceUnavailable, "busy")
	close(w.backups.hold)
	for range maxBackups {
		if code := <-done; code != http.StatusOK {
			t.Errorf("one of those that fit: %d", code)
		}
	}
}
