package webui

import "net/http"

func (u *ui) getVersion(w http.ResponseWriter, _ *http.Request) error {
	return ok(w, map[string]string{"version": u.Version, "commit": u.Commit})
}

func getHealth(w http.ResponseWriter, _ *http.Request) error {
	return ok(w, map[string]string{"status": "up"})
}

func (u *ui) getReady(w http.ResponseWriter, _ *http.Request) error {
	if err := u.Ready(); err != nil {
		return refuse(codeNotReady, err.Error())
	}
	return ok(w, map[string]string{"status": "ready"})
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
