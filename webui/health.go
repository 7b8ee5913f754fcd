package webui

import (
	"net/http"
	"slices"
)

func (u *ui) getVersion(w http.ResponseWriter, _ *http.Request) error {
	return ok(w, map[string]string{"version": u.Version, "commit": u.Commit})
}

func getHealth(w http.ResponseWriter, _ *http.Request) error {
	return ok(w, map[string]string{"status": "up"})
}

func (u *ui) getReady(w http.ResponseWriter, _ *http.Request) error {
	problems := u.Problems()
	if p, failing := firstFailing(problems); failing {
		return refuse(codeNotReady, p.String())
	}
	return ok(w, map[string]any{"status": "ready", "problems": list(problems)})
}

// readyOrElse refuses what only a server can do that has all that was decided.
func (u *ui) readyOrElse() error {
	if p, failing := firstFailing(u.Problems()); failing {
		return refuse(codeNotReady, p.String()+"; ask another server, or wait until this one is ready")
	}
	return nil
}

// firstFailing returns the first problem that keeps a server from serving.
func firstFailing(problems []Problem) (Problem, bool) {
	i := slices.IndexFunc(problems, func(p Problem) bool { return p.Failing })
	if i < 0 {
		return Problem{}, false
	}
	return problems[i], true
}

// hostCounts are the numbers on the dashboard.
type hostCounts struct {
	Online  int
	Offline int // Left among them, Unreachable not
	Left    int

	Unreachable int
	Behind      int
}

func (p picture) counts() (c hostCounts) {
	for _, h := range p.agents() {
		switch p.status(h) {
		case statusOnline:
			c.Online++
		case statusUnreachable:
			c.Unreachable++
		case statusLeft:
			c.Left++
			c.Offline++
		default:
			c.Offline++
		}
		if p.behind(h.ID, p.target) {
			c.Behind++
		}
	}
	return c
}
