package webui

import (
	"fmt"
	"net/http"
	"slices"

	"moult/consensus/fleet"
)

var segmentsPageKind = pageKind{name: "segments", title: "Segments", topics: "hosts jobs fleet-updates releases gossip denied"}

// segmentsView is what the page of segments shows: the map, and the same as tables.
type segmentsView struct {
	shell
	Map      mapView
	Segments []segmentJSON
	Relays   []relayJSON
	Update   *fleet.FleetUpdate // whose sources are shown
	Target   string
	Gossip   []rotationJSON
	Denied   deniedListJSON
}

func (u *ui) segmentsPage(w http.ResponseWriter, r *http.Request) error {
	p := u.picture()
	v := &segmentsView{Segments: p.segmentMap(), Relays: p.relays(), Target: p.target, Gossip: u.gossip().Segments, Denied: u.denied()}
	v.Map = drawMap(v.Segments, v.Relays)
	if f, exists := p.shownUpdate(); exists {
		v.Update = &f
	}
	return u.show(w, r, segmentsPageKind, v)
}

// Measures of the map, in its own units, of which a phone shows about one a pixel.
const (
	mapWidth  = 360
	boxHeight = 96
	rowGap    = 64
	boxGap    = 24
	perRow    = 2
	relayStep = 24 // between the relays that lead the same way
	// maxDrawn is how many segments are drawn; the table has all.
	maxDrawn = 60
)

// mapView is the map as shapes: segments in rows, the servers' first, and a dot on
// a line for each relay between two of them.
type mapView struct {
	Width, Height int
	Boxes         []mapBox
	Relays        []mapRelay
	More          int // segments that are not drawn
}

type mapBox struct {
	segmentJSON
	X, Y, W, H int
	Class      string
	Title      mapLine
	Lines      []mapLine
}

type mapLine struct {
	X, Y int
	Text string
}

// mapRelay is a relay on its way between two segments.
type mapRelay struct {
	relayJSON
	X1, Y1, X2, Y2 int
	X, Y           int // of the dot
}

func drawMap(segments []segmentJSON, relays []relayJSON) mapView {
	drawn := segments[:min(len(segments), maxDrawn)]
	m := mapView{Width: mapWidth, More: len(segments) - len(drawn)}
	at := map[string]int{}
	y := 1
	for first := 0; first < len(drawn); {
		last := first + 1 // one row: of one distance, as many as fit
		for last < len(drawn) && last-first < perRow && drawn[last].Row() == drawn[first].Row() {
			last++
		}
		w := (mapWidth - 2 - (last-first-1)*boxGap) / (last - first)
		for i := first; i < last; i++ {
			at[drawn[i].Name] = len(m.Boxes)
			m.Boxes = append(m.Boxes, newBox(drawn[i], 1+(i-first)*(w+boxGap), y, w))
		}
		y += boxHeight + rowGap
		first = last
	}
	m.Height = max(y-rowGap+1, 1)
	between := map[[2]int]int{} // relays so far between two boxes
	for _, r := range relays {
		for i := 1; i < len(r.Segments); i++ {
			a, okA := at[r.Segments[i-1]]
			b, okB := at[r.Segments[i]]
			if !okA || !okB {
				continue
			}
			pair := [2]int{min(a, b), max(a, b)}
			m.Relays = append(m.Relays, newMapRelay(r, m.Boxes[pair[0]], m.Boxes[pair[1]], between[pair]))
			between[pair]++
		}
	}
	return m
}

func newBox(s segmentJSON, x, y, w int) mapBox {
	b := mapBox{segmentJSON: s, X: x, Y: y, W: w, H: boxHeight, Class: "good"}
	switch {
	case !s.Reached:
		b.Class = "bad"
	case s.Hosts.Online < s.Hosts.Total || s.Behind > 0:
		b.Class = "warn"
	}
	state := fmt.Sprintf("%s online", number(s.Hosts.Online))
	if away := s.Hosts.Offline + s.Hosts.Left; away > 0 {
		state += fmt.Sprintf(", %s offline", number(away))
	}
	if s.Hosts.Unreachable > 0 {
		state = fmt.Sprintf("%s unreachable", number(s.Hosts.Unreachable))
	}
	b.Title = mapLine{x + 12, y + 25, b.short()}
	texts := []string{count(s.Hosts.Total, "host"), state}
	if len(s.Servers) > 0 {
		texts[0] = count(len(s.Servers), "server") + ", " + texts[0]
	}
	if s.Behind > 0 {
		texts = append(texts, number(s.Behind)+" behind")
	}
	for i, text := range texts {
		b.Lines = append(b.Lines, mapLine{x + 12, y + 46 + i*19, text})
	}
	return b
}

// newMapRelay draws the nth relay between two boxes, beside those before it.
func newMapRelay(r relayJSON, a, b mapBox, nth int) mapRelay {
	offset := relayStep * ((nth + 1) / 2)
	if nth%2 == 1 {
		offset = -offset
	}
	d := mapRelay{relayJSON: r}
	if a.Y == b.Y { // side by side
		d.X1, d.X2 = a.X+a.W, b.X
		d.Y1 = a.Y + a.H/2 + offset
		d.Y2 = d.Y1
	} else {
		d.X1, d.Y1 = a.X+a.W/2+offset, a.Y+a.H
		d.X2, d.Y2 = b.X+b.W/2+offset, b.Y
	}
	d.X, d.Y = (d.X1+d.X2)/2, (d.Y1+d.Y2)/2
	return d
}

// short is a segment's name, cut to the width of its box.
func (b mapBox) short() string {
	letters := []rune(b.Name)
	if fits := (b.W - 24) / 9; len(letters) > fits {
		return string(letters[:max(fits-1, 1)]) + "…"
	}
	return b.Name
}

// Others names the segments of a relay but one.
func (r relayJSON) Others(segment string) []string {
	return slices.DeleteFunc(slices.Clone(r.Segments), func(s string) bool { return s == segment })
}
