package webui

import (
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"moult/consensus/fleet"
)

// pageKind is what is fixed about a page.
type pageKind struct {
	name   string // of its template
	title  string // of the window, unless the view sets one
	topics string // the events at which its live part is fetched again
	every  int    // seconds between fetches for what no event tells of; 0 is never
}

// shell is what a page shows around its content, and what its content may need:
// who looks, and when. Views embed it; show fills it in.
type shell struct {
	Title        string
	Here         string // the address of the page
	Topics       string
	Every        int
	Now          time.Time
	Version      string
	Caller       caller
	Nav          []navItem
	OtherServers []serverAddress // the other servers, for when this one is lost
}

func (s *shell) frame() *shell { return s }

// May tells whether who looks has a role.
func (s *shell) May(role string) bool { return s.Caller.Role.Includes(fleet.UserRole(role)) }

// view is the data of a page: a struct that embeds shell.
type view interface{ frame() *shell }

// navItem is a link of the navigation.
type navItem struct {
	Path, Label string
	Settings    bool
	role        fleet.UserRole
	Current     bool
}

var navigation = []navItem{
	{Path: "/", Label: "Dashboard", role: fleet.Viewer},
	{Path: "/settings/fleet-update", Label: "Fleet update", role: fleet.Viewer},
	{Path: "/releases", Label: "Releases", role: fleet.Viewer},
	{Path: "/segments", Label: "Segments", role: fleet.Viewer},
	{Path: "/alerts", Label: "Alerts", role: fleet.Viewer},
	{Path: "/audit", Label: "Audit", role: fleet.Viewer},
	{Path: "/settings/users", Label: "Users and tokens", Settings: true, role: fleet.Viewer},
	{Path: "/settings/servers", Label: "Servers", Settings: true, role: fleet.Viewer},
	{Path: "/settings/webhooks", Label: "Webhooks", Settings: true, role: fleet.Admin},
	{Path: "/settings/add-host", Label: "Add a host", Settings: true, role: fleet.Admin},
}

// under tells whether a path belongs to a link.
func (n navItem) under(path string) bool {
	if n.Path == "/" {
		return path == "/" || strings.HasPrefix(path, "/hosts/") || strings.HasPrefix(path, "/jobs/")
	}
	return path == n.Path || strings.HasPrefix(path, n.Path+"/")
}

func (u *ui) shell(r *http.Request, who caller) shell {
	s := shell{Here: r.URL.RequestURI(), Now: u.Now(), Version: u.Version, Caller: who}
	_, servers := u.hosts.lists(u.View())
	s.OtherServers = otherServers(servers, r.Host)
	for _, n := range navigation {
		if who.Role.Includes(n.role) {
			n.Current = n.under(r.URL.Path)
			s.Nav = append(s.Nav, n)
		}
	}
	return s
}

// wantsFragment tells whether htmx asks for a page's live part alone.
func wantsFragment(r *http.Request) bool { return r.Header.Get("HX-Request") == "true" }

// show writes a page, or its live part where that is what was asked for.
func (u *ui) show(w http.ResponseWriter, r *http.Request, kind pageKind, v view) error {
	return u.showAs(w, r, http.StatusOK, kind, v)
}

func (u *ui) showAs(w http.ResponseWriter, r *http.Request, status int, kind pageKind, v view) error {
	s := v.frame()
	title := s.Title
	*s = u.shell(r, callerOf(r))
	s.Title, s.Topics, s.Every = title, kind.topics, kind.every
	if title == "" {
		s.Title = kind.title
	}
	if wantsFragment(r) {
		return u.pages.write(w, status, kind.name, "live", v)
	}
	w.Header().Set("Content-Security-Policy", policyWith(s.OtherServers))
	return u.pages.write(w, status, kind.name, "layout", v)
}

// serverAddress is where a server's pages are.
type serverAddress struct {
	Name, Address string
	TLS           bool
}

// Origin is what a browser calls it.
func (s serverAddress) Origin() string {
	if s.TLS {
		return "https://" + s.Address
	}
	return "http://" + s.Address
}

// probeable is a HOST:PORT that a Content-Security-Policy can name as a source:
// its grammar knows no IPv6 addresses.
var probeable = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?:[0-9]{1,5}$`)
})

// maxOthers bounds how many servers a page names. A cluster has five at most.
const maxOthers = 8

// otherServers returns the addresses of the pages of all servers but the one at
// own. A server that listens on every address is reached at its node port's.
func otherServers(servers []*fleet.Host, own string) []serverAddress {
	var out []serverAddress
	for _, h := range servers {
		host, port, err := net.SplitHostPort(h.HTTPAddr)
		if err != nil || len(out) == maxOthers {
			continue
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			if host, _, err = net.SplitHostPort(h.PeerAddr); err != nil {
				continue
			}
		}
		if address := net.JoinHostPort(host, port); address != own && probeable().MatchString(address) {
			out = append(out, serverAddress{h.Name, address, h.HTTPTLS})
		}
	}
	return out
}

// policyWith lets a page's script ask the other servers whether they are there.
func policyWith(others []serverAddress) string {
	sources := "'self'"
	for _, s := range others {
		sources += " " + s.Origin()
	}
	return strings.Replace(contentSecurityPolicy, "connect-src 'self'", "connect-src "+sources, 1)
}
