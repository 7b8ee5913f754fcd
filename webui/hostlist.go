package webui

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"moult/consensus/fleet"
)

// Limits of host lists.
const (
	hostsPerPage  = 50
	maxHostsLimit = 100_000 // rows of one answer of the API
	maxPage       = 1_000_000
)

// hostFilter is the query of a host list.
type hostFilter struct {
	Status  string // "online", "offline" (left ones too), "unreachable", "left" or ""
	Updates string // "behind" or ""
	Segment string
	Version string // what the hosts run
	Label   labelFilter
	Q       string // part of a name, an id or a label, whatever the case
	Sort    string // one of hostOrders; a "-" before it turns it round
}

// hostOrders are what host lists can be sorted by. Equal hosts stay by name.
var hostOrders = map[string]func(p picture, a, b *fleet.Host) int{
	"name":    func(_ picture, a, b *fleet.Host) int { return strings.Compare(a.Name, b.Name) },
	"segment": func(_ picture, a, b *fleet.Host) int { return strings.Compare(a.Segment, b.Segment) },
	"status":  func(p picture, a, b *fleet.Host) int { return cmp.Compare(p.rank(a.ID), p.rank(b.ID)) },
	"version": func(p picture, a, b *fleet.Host) int {
		return compareVersions(p.observed[a.ID].Version, p.observed[b.ID].Version)
	},
	"seen": func(p picture, a, b *fleet.Host) int {
		return p.observed[a.ID].LastSeen.Compare(p.observed[b.ID].LastSeen)
	},
}

// rank orders hosts by how much they ask for attention.
func (p picture) rank(id string) int {
	switch {
	case p.inProgress[id]:
		return 0
	case !p.observed[id].Online:
		return 1
	case p.behind(id, p.target):
		return 2
	default:
		return 3
	}
}

// compareVersions compares runs of digits as numbers: 1.9 comes before 1.10.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, nb := leadingDigits(a), leadingDigits(b)
		if na > 0 && nb > 0 {
			da, db := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if c := cmp.Or(cmp.Compare(len(da), len(db)), strings.Compare(da, db)); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func leadingDigits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func readHostFilter(r *http.Request) (f hostFilter, err error) {
	if f.Status, err = queryChoice(r, "status", statusOnline, statusOffline, statusUnreachable, statusLeft); err != nil {
		return f, err
	}
	if f.Updates, err = queryChoice(r, "updates", "behind"); err != nil {
		return f, err
	}
	q := r.URL.Query()
	f.Segment, f.Version, f.Q, f.Sort = q.Get("segment"), q.Get("version"), q.Get("q"), q.Get("sort")
	if f.Label, err = readLabelFilter(q.Get("label")); err != nil {
		return f, err
	}
	if _, known := hostOrders[strings.TrimPrefix(f.Sort, "-")]; f.Sort != "" && !known {
		return f, badRequest("sort: %s is not name, status, version, segment or seen, or one of them after a -", quoted(f.Sort))
	}
	return f, nil
}

// Narrowed tells whether the filter leaves hosts out.
func (f hostFilter) Narrowed() bool {
	f.Sort = ""
	return f != hostFilter{}
}

// query is the filter as the query of a link.
func (f hostFilter) query() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{
		"status": f.Status, "updates": f.Updates, "segment": f.Segment, "version": f.Version, "label": string(f.Label), "q": f.Q, "sort": f.Sort,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q
}

// SortedBy is the aria-sort of a column.
func (f hostFilter) SortedBy(column string) string {
	switch {
	case f.Sort == column || f.Sort == "" && column == "name":
		return "ascending"
	case f.Sort == "-"+column:
		return "descending"
	default:
		return "none"
	}
}

// SortLink leads to the list sorted by a column, or turned round.
func (f hostFilter) SortLink(column string) string {
	if f.SortedBy(column) == "ascending" {
		column = "-" + column
	}
	f.Sort = column
	return "/?" + f.query().Encode()
}

func (p picture) matches(f hostFilter, q string, h *fleet.Host) bool {
	o := p.observed[h.ID]
	switch {
	case f.Status != "" && !p.isStatus(h, f.Status),
		f.Updates != "" && !p.behind(h.ID, p.target),
		f.Segment != "" && h.Segment != f.Segment,
		f.Version != "" && o.Version != f.Version,
		!f.Label.matches(h.Labels):
		return false
	}
	return q == "" || strings.Contains(strings.ToLower(h.Name), q) || strings.Contains(strings.ToLower(h.ID), q) || labelsContain(h.Labels, q)
}

// isStatus tells whether a host is so. One that left is offline, too.
func (p picture) isStatus(h *fleet.Host, status string) bool {
	is := p.status(h)
	return is == status || is == statusLeft && status == statusOffline
}

// filtered returns the hosts that a filter lets through, in its order.
func (p picture) filtered(f hostFilter) []*fleet.Host {
	var out []*fleet.Host
	q := strings.ToLower(f.Q)
	for _, h := range p.agents() {
		if p.matches(f, q, h) {
			out = append(out, h)
		}
	}
	column, descending := strings.CutPrefix(f.Sort, "-")
	if f.Sort == "" {
		return out // by name as they are
	}
	order := hostOrders[column]
	slices.SortStableFunc(out, func(a, b *fleet.Host) int {
		if descending {
			a, b = b, a
		}
		return order(p, a, b)
	})
	return out
}

func (p picture) rows(hosts []*fleet.Host) []hostJSON {
	rows := make([]hostJSON, 0, len(hosts))
	for _, h := range hosts {
		rows = append(rows, p.host(h))
	}
	return rows
}

func (u *ui) listHosts(w http.ResponseWriter, r *http.Request) error {
	f, err := readHostFilter(r)
	if err != nil {
		return err
	}
	offset, err := queryUint(r, "offset", 0)
	if err != nil {
		return err
	}
	limit, err := queryUint(r, "limit", maxHostsLimit)
	if err != nil {
		return err
	}
	if limit == 0 || limit > maxHostsLimit {
		return badRequest("limit: give 1 to %d", maxHostsLimit)
	}
	p := u.picture()
	hosts := p.filtered(f)
	total := len(hosts)
	hosts = hosts[min(offset, uint64(total)):]
	hosts = hosts[:min(limit, uint64(len(hosts)))]
	return ok(w, map[string]any{"hosts": p.rows(hosts), "total": total})
}

// paging is one page of a list and the way to the others.
type paging struct {
	Page, Pages        int // from 1
	From, To, Total    int // rows shown, from 1
	Previous, Next     string
	fromIndex, toIndex int
}

// readPage reads which page a request is for; fallback if it does not say.
func readPage(r *http.Request, fallback int) (int, error) {
	page, err := queryUint(r, "page", uint64(fallback))
	if err == nil && (page == 0 || page > maxPage) {
		err = badRequest("page: give 1 to %d", maxPage)
	}
	return int(page), err
}

// paginate cuts a list. A page behind the end is the last one: the list may have
// become shorter while somebody looked at it.
func paginate(total, size, page int, path string, query url.Values) paging {
	p := paging{Total: total, Pages: max(1, (total+size-1)/size)}
	p.Page = min(page, p.Pages)
	p.fromIndex = (p.Page - 1) * size
	p.toIndex = min(total, p.fromIndex+size)
	p.From, p.To = p.fromIndex+1, p.toIndex
	link := func(page int) string {
		query.Set("page", strconv.Itoa(page))
		return path + "?" + query.Encode()
	}
	if p.Page > 1 {
		p.Previous = link(p.Page - 1)
	}
	if p.Page < p.Pages {
		p.Next = link(p.Page + 1)
	}
	return p
}
