package webui

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

func (a answer) Shows(texts ...string) {
	a.tb.Helper()
	page := textOf(a.Body.String())
	for _, want := range texts {
		if !strings.Contains(page, want) {
			a.tb.Errorf("no %q in %s", want, page)
		}
	}
}

func (a answer) Lacks(texts ...string) {
	a.tb.Helper()
	page := textOf(a.Body.String())
	for _, unwanted := range texts {
		if strings.Contains(page, unwanted) {
			a.tb.Errorf("%q is in %s", unwanted, page)
		}
	}
}

func TestHostPageTellsWhereItsBinaryCameFrom(t *testing.T) {
	f := StartFurnished(t)
	f.Admin("GET", "/hosts/"+f.fine, "").Shows("web-2", "Runs 2.0.0", strings.Repeat("cd", 32), "(agent, 17.3 MB)", "server-1 (server, 512 B)", "linux/amd64", "succeeded", "1.0.0")
	f.Admin("GET", "/hosts/"+f.failed, "").Shows("out of date · 1.0.0 → 2.0.0", "this version was installed with the host", "failed", "the new binary exited at once", "in a fleet update")
}

func TestUpdateButtonTellsWhyItIsDisabled(t *testing.T) {
	w := StartWorld(t)
	behind, offline := w.MustEnrol("behind", "1.0.0", true), w.MustEnrol("gone", "1.0.0", false)
	current := w.MustEnrol("current", "2.0.0", true)
	disabled := func(id, reason string) {
		t.Helper()
		a := w.Admin("GET", "/hosts/"+id, "")
		_, button, _ := strings.Cut(a.Body.String(), `<button id="update"`)
		button, _, found := strings.Cut(button, "</button>")
		if !found {
			t.Errorf("%s: no button", id)
		}
		if strings.Contains(button, "disabled") != (reason != "") {
			t.Errorf("%s: %s", id, button)
		}
		a.Shows(reason)
	}
	w.roster.set(behind, Observation{Online: true, Version: "0.9.0"})
	disabled(behind, "there is no release")
	w.roster.set(behind, Observation{Online: true, Version: "1.0.0"})
	w.MustRelease("2.0.0", 2)
	disabled(behind, "")
	disabled(offline, "gone is offline")
	disabled(current, "current runs 2.0.0 already")
	job := w.Admin("POST", "/api/hosts/"+behind+"/update", "").OK()["job_id"].(string)
	disabled(behind, "behind is being updated")
	w.Admin("GET", "/hosts/"+behind, "").Shows("An update to 2.0.0 is queued", "Follow its log")
	w.Admin("GET", "/jobs/"+job, "").Shows("Update of behind to 2.0.0", "queued", "Waiting for its turn")
	if body := w.Call(operatorToken, "GET", "/hosts/"+current, "").Body.String(); strings.Contains(body, "<button id=") {
		t.Error("an operator is offered the buttons of an admin")
	}
}

func TestHostPageNamesTheSegmentsOfARelay(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("gate-1", "1.0.0", true)
	w.Admin("GET", "/hosts/"+id, "").Lacks("relay to")
	w.MustPropose("host:gate-1", fleet.HostSegmentsChanged{HostID: id, Also: []fleet.HostSegment{{Segment: "dmz", GossipAddr: "10.2.0.5:7946"}, {Segment: "plant", GossipAddr: "10.3.0.5:7946"}}})
	w.Admin("GET", "/hosts/"+id, "").Shows("default , relay to dmz , plant")
}

func TestJobPageLeadsToItsFleetUpdate(t *testing.T) {
	f := StartFurnished(t)
	page := f.Admin("GET", "/jobs/"+f.job, "")
	if !strings.Contains(page.Body.String(), `in a <a href="/settings/fleet-update?id=fu-1">fleet update</a>`) {
		t.Errorf("no link: %s", page.Body)
	}
}

func TestPageOfARemovedHostIsNotFound(t *testing.T) {
	f := StartFurnished(t)
	f.Admin("DELETE", "/api/hosts/"+f.failed, "").OK()
	for _, a := range []answer{f.Admin("GET", "/hosts/"+f.failed, ""), f.Fragment(adminToken, "/hosts/"+f.failed)} {
		if a.Code != 404 {
			t.Errorf("%d", a.Code)
		}
		a.Shows("it may have been removed since")
	}
	f.Admin("DELETE", "/api/hosts/"+f.failed, "").Refused(404, "host_not_found")
	// Servers have one page together: turns and jobs of servers link to it.
	if a := f.Admin("GET", "/hosts/s1", ""); a.Code != 303 || a.Header().Get("Location") != "/settings/servers" {
		t.Errorf("%d to %s", a.Code, a.Header().Get("Location"))
	}
	// What it did is still told.
	f.Admin("GET", "/jobs/"+f.job, "").Shows("web-1 (removed since)", "order accepted")
	if a := f.Admin("GET", "/jobs/nothing", ""); a.Code != 404 {
		t.Errorf("%d", a.Code)
	}
	if a := f.Admin("GET", "/jobs/"+f.job+"/log?after=x", ""); a.Code != 400 {
		t.Errorf("%d", a.Code)
	}
}

func TestJobLogComesInParts(t *testing.T) {
	f := StartFurnished(t)
	const lines = maxLogLines + 5
	for i := 0; i < lines; i += 205 {
		c := fleet.JobLogAppended{JobID: "job-0", First: uint64(i + 1)}
		for j := i; j < min(i+205, lines); j++ {
			c.Lines = append(c.Lines, fleet.LogLine{At: f.clock.Now(), Stream: fleet.StreamAgent, Line: fmt.Sprintf("line %d.", j+1)})
		}
		f.MustPropose("host:web-2", c)
	}
	first := f.Admin("GET", "/jobs/job-0", "").Body.String()
	if !strings.Contains(first, "line 1000.") || strings.Contains(first, "line 1001.") || !strings.Contains(first, `hx-get="/jobs/job-0/log?after=1000" hx-trigger="refresh, load"`) {
		t.Errorf("first part: %s", first[max(0, len(first)-2000):])
	}
	rest := f.Fragment(adminToken, "/jobs/job-0/log?after=1000").Body.String()
	if strings.Contains(rest, "line 1000.") || strings.Count(rest, "line 10") != 5 || !strings.Contains(rest, `log?after=1005" hx-trigger="refresh" `) {
		t.Errorf("rest: %s", rest)
	}
}

// TestAdminFollowsAnUpdateInABrowser presses Update twice at once, follows the
// log as it is written, and finds it whole afterwards.
func TestAdminFollowsAnUpdateInABrowser(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("web-1", "1.0.0", true)
	w.MustRelease("2.0.0", 2)
	srv := w.MustServe("server-2")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/")
	b.Do(browsertest.Click(chromedp.CSS("#host-"+id+" a")), chromedp.WaitVisible(chromedp.ID("update")))
	b.Do(clickTwice("update"))
	b.AwaitText("Waiting for its turn")
	b.AwaitText("Nothing yet.")
	jobs := w.state.View().Jobs(id)
	if len(jobs) != 1 {
		t.Fatalf("%d jobs of a double click", len(jobs))
	}
	job := jobs[0].ID
	w.MustPropose("coordinator", fleet.JobDispatched{JobID: job, HostID: id, FromVersion: "1.0.0", Boot: 1})
	w.roster.set(id, Observation{Online: true, Version: "1.0.0", Phase: "fetching", JobID: job, Done: 3_000_000, Total: 12_000_000})
	b.AwaitText("fetching 25 % 3.0 MB of 12.0 MB")
	say := func(seq uint64, stream, line string) {
		w.MustPropose("host:web-1", fleet.JobLogAppended{JobID: job, First: seq, Lines: []fleet.LogLine{{At: w.clock.Now().Add(time.Duration(seq) * time.Second), Stream: stream, Line: line}}})
		b.AwaitText(line)
	}
	say(1, fleet.StreamAgent, "fetching from server-1")
	say(2, fleet.StreamOutput, "hello from the new binary <b>")
	b.Screenshot("job-running")
	w.MustPropose("coordinator", fleet.JobFinished{JobID: job, Status: fleet.JobSucceeded})
	b.AwaitText("succeeded")
	b.Do(chromedp.Reload())
	b.AwaitText("hello from the new binary <b>")
	if n := b.Text(`document.querySelectorAll("#log li:not(.more)").length`); n != "2" {
		t.Errorf("%s lines", n)
	}
	b.Do(chromedp.Navigate(srv.URL+"/hosts/"+id), browsertest.Click(chromedp.ID("remove")), confirm())
	b.AwaitText("No host has joined yet")

	other := w.MustEnrol("web-2", "1.0.0", true)
	b.Do(chromedp.Navigate(srv.URL + "/hosts/" + other))
	b.AwaitText("web-2 online")
	w.MustPropose("user:bob", fleet.HostRemoved{HostID: other}) // while somebody looks at it
	b.AwaitText("it may have been removed since")
}
