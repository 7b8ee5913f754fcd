package webui

import (
	"net/http"
	"net/url"

	"moult/consensus/fleet"
)

var alertsPageKind = pageKind{name: "alerts", title: "Alerts", topics: "alerts hosts"}

const alertsPerPage = 50

// alertsView is what the alerts page shows.
type alertsView struct {
	shell
	Open     []alertRow
	Resolved []alertRow
	Pages    paging // of those resolved
}

// alertRow is an alert and the name of the host that it is about.
type alertRow struct {
	fleet.Alert
	HostName string // "" when it is about none, or it was removed
}

func (u *ui) alertsPage(w http.ResponseWriter, r *http.Request) error {
	page, err := readPage(r, 1)
	if err != nil {
		return err
	}
	p, v := u.picture(), &alertsView{}
	var resolved []fleet.Alert
	for _, a := range p.Alerts() {
		if a.Status == fleet.AlertStatusOpen {
			v.Open = append(v.Open, p.alertRow(a))
		} else {
			resolved = append(resolved, a)
		}
	}
	v.Pages = paginate(len(resolved), alertsPerPage, page, "/alerts", url.Values{})
	for _, a := range resolved[v.Pages.fromIndex:v.Pages.toIndex] {
		v.Resolved = append(v.Resolved, p.alertRow(a))
	}
	return u.show(w, r, alertsPageKind, v)
}

func (p picture) alertRow(a fleet.Alert) alertRow {
	row := alertRow{Alert: a}
	if h, exists := p.Host(a.HostID); exists {
		row.HostName = h.Name
	}
	return row
}
