package webui

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"moult/consensus/fleet"
	"moult/webui/browsertest"
)

// as sends a request with a session's cookie, from the same origin.
func (w *world) as(session *http.Cookie, method, path, body string) answer {
	w.tb.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.AddCookie(session)
	return w.Do(r)
}

func TestOwnPasswordTakesThePresentOne(t *testing.T) {
	w := StartWorld(t)
	hash, err := adminHash()
	if err != nil {
		t.Fatal(err)
	}
	w.MustPropose("user:admin", fleet.UserCreated{User: fleet.User{ID: "u2", Name: "vera", Role: fleet.Viewer, PasswordHash: hash}})
	mine, elsewhere := w.MustSession(t, "u2"), w.MustSession(t, "u2")
	const path = "/api/account/password"
	for body, field := range map[string]string{
		`{"current_password":"wrong","new_password":"long enough"}`:                                "current_password",
		`{"new_password":"long enough"}`:                                                           "current_password",
		`{"current_password":"` + adminPassword + `","new_password":"short"}`:                      "password",
		`{"current_password":"` + adminPassword + `","new_password":"` + adminPassword + `"}`:      "new_password",
		`{"current_password":"` + adminPassword + `","new_password":"long enough","user_id":"u1"}`: "unknown field",
	} {
		if msg := w.as(mine, "POST", path, body).Refused(400, "bad_request"); !strings.HasPrefix(msg, field) {
			t.Errorf("%s: %s", body, msg)
		}
	}
	w.Call(viewerToken, "POST", path, `{"current_password":"x","new_password":"long enough"}`).Refused(409, "no_account")
	w.as(mine, "POST", path, `{"current_password":"`+adminPassword+`","new_password":"long enough"}`).OK()
	for _, session := range []*http.Cookie{mine, elsewhere} {
		w.as(session, "GET", "/api/hosts", "").Refused(401, "unauthenticated")
	}
	user, _ := w.state.View().User("u2")
	if right, err := CheckPassword(user.PasswordHash, "long enough"); !right || err != nil {
		t.Errorf("%v %v", right, err)
	}
	if e := w.state.View().Audit(0, 1)[0]; e.Actor != "user:vera" || e.Subject != "user vera" {
		t.Errorf("%+v", e)
	}
}

func TestGuessingOneselfIsThrottled(t *testing.T) {
	w := StartWorld(t)
	mine := w.MustSession(t, "u1")
	body := `{"current_password":"wrong","new_password":"long enough"}`
	for range loginBurst {
		w.as(mine, "POST", "/api/account/password", body).Refused(400, "bad_request")
	}
	if a := w.as(mine, "POST", "/api/account/password", body); a.Header().Get("Retry-After") == "" {
		t.Error("no Retry-After")
	} else {
		a.Refused(429, "too_many_attempts")
	}
}

func TestSignOutEverywhereKeepsRoleAndPassword(t *testing.T) {
	w := StartWorld(t)
	before, _ := w.state.View().User("u1")
	mine, elsewhere := w.MustSession(t, "u1"), w.MustSession(t, "u1")
	w.Call(viewerToken, "POST", "/api/account/end-sessions", "").Refused(409, "no_account")
	cross := httptest.NewRequest("POST", "/api/account/end-sessions", nil)
	cross.Header.Set("Sec-Fetch-Site", "cross-site")
	cross.AddCookie(mine)
	w.Do(cross).Refused(403, "cross_origin")
	w.as(mine, "POST", "/api/account/end-sessions", "").OK()
	for _, session := range []*http.Cookie{mine, elsewhere} {
		w.as(session, "GET", "/api/hosts", "").Refused(401, "unauthenticated")
	}
	if e := w.state.View().Audit(0, 1)[0]; e.Action != "sessions_ended" || e.Actor != "user:admin" || e.Subject != "user admin" {
		t.Errorf("%+v", e)
	}
	if after, _ := w.state.View().User("u1"); after.Role != before.Role || after.PasswordHash != before.PasswordHash {
		t.Errorf("%+v", after)
	}
}

func TestServersPageTellsWhatMayBeLost(t *testing.T) {
	w := StartWorld(t)
	server := func(id string, leader, healthy bool, applied uint64) ServerStatus {
		return ServerStatus{ID: id, Name: "server-" + id, Version: "1.0.0", Address: "10.0.0.1:7947", Leader: leader, Voter: true, Healthy: healthy, AppliedIndex: applied}
	}
	for want, list := range map[string][]ServerStatus{
		"1 of 1 voter healthy, 1 is needed. None may be lost":    {server("1", true, true, 100)},
		"3 of 3 voters healthy, 2 are needed. 1 more may be":     {server("1", true, true, 100), server("2", false, true, 97), server("3", false, true, 100)},
		"2 of 3 voters healthy, 2 are needed. None may":          {server("1", true, true, 100), server("2", false, true, 97), server("3", false, false, 0)},
		"no majority 1 of 3 voters healthy, 2 are needed":        {server("1", false, true, 100), server("2", false, false, 0), server("3", false, false, 0)},
		"server-2 healthy voter 1.0.0 97 3":                      {server("1", true, true, 100), server("2", false, true, 97)},
		"server-1 healthy leader 1.0.0 100 0 10.0.0.1:7947":      {server("1", true, true, 100)},
		"No server is known":                                     nil,
		"server-4 healthy not a voter yet 1.0.0 5 95 10.0.0.1:7": {server("1", true, true, 100), {ID: "4", Name: "server-4", Version: "1.0.0", Healthy: true, AppliedIndex: 5, Address: "10.0.0.1:7947"}},
	} {
		w.servers.list = list
		w.Admin("GET", "/settings/servers", "").Shows(want)
	}
	w.servers.list = []ServerStatus{server("1", true, true, 1), server("2", false, true, 1)}
	w.Admin("GET", "/settings/servers", "").Shows("Transfer leadership", "Remove")
	if body := w.Call(operatorToken, "GET", "/settings/servers", "").Body.String(); strings.Contains(body, "data-call") {
		t.Error("an operator is offered buttons")
	}
}

// What an admin looks for on the page and does elsewhere, it names.
func TestServersPageNamesWhatIsDoneElsewhere(t *testing.T) {
	w := StartWorld(t)
	w.Admin("GET", "/settings/servers", "").Shows("Add a server", "moult servers replace OLD --with NEW", "moult server backup FILE", "moult servers verify")
	w.Admin("GET", "/audit?action=backup_taken", "").Shows("backup taken")
	w.Call(viewerToken, "GET", "/settings/servers", "").Lacks("moult server backup", "Add a server")
}

func TestJoinScriptsHoldTheBinaryToItsDigest(t *testing.T) {
	w := StartWorld(t)
	w.MustPropose("host:server-1", fleet.HostAddressesChanged{HostID: "s1", PeerAddr: "10.0.0.1:7947", HTTPAddr: "0.0.0.0:8480"})
	w.MustEnrol("edge", "1.0.0", true)
	binary, err := w.store.Open("linux", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	out := w.Admin("POST", "/api/join-tokens", `{"segment":"dmz"}`).OK()
	token, scripts := out["token"].(string), out["scripts"].(map[string]any)
	linux, windows := scripts["linux"].(string), scripts["windows"].(string)
	for _, want := range []string{"'http://10.0.0.1:8480/agent/binary?os=linux&arch=amd64'", binary.SHA256 + "  moult' | sha256sum -c", "MOULT_TOKEN=" + token + " moult install agent --join 10.0.0.1:7947\n"} {
		if !strings.Contains(linux, want) {
			t.Errorf("no %s in %s", want, linux)
		}
	}
	for _, want := range []string{"none to fetch", "$env:MOULT_TOKEN = '" + token + "'", `.\moult.exe install agent`, "--join 10.0.0.1:7947"} {
		if !strings.Contains(windows, want) {
			t.Errorf("no %s in %s", want, windows)
		}
	}
	w.Admin("POST", "/api/join-tokens", `{"arch":"mips"}`).Refused(400, "bad_request")
	// Servers name their own addresses, and this one is pasted into a root shell.
	w.MustPropose("host:server-1", fleet.HostAddressesChanged{HostID: "s1", PeerAddr: "$(reboot):7947"})
	hostile := w.Admin("POST", "/api/join-tokens", `{}`).OK()
	for _, script := range []string{hostile["command"].(string), at(hostile, "scripts", "linux").(string), at(hostile, "scripts", "windows").(string)} {
		if strings.Contains(script, "reboot") {
			t.Errorf("an address that is a command: %s", script)
		}
	}
	w.Admin("GET", "/settings/add-host", "").Shows("agent dmz API token bootstrap")
	w.clock.Advance(time.Hour)
	w.Admin("GET", "/settings/add-host", "").Shows("None. Make one above.")
}

// TestAdminManagesPeopleInABrowser makes a user and a token, changes the user,
// and finds that the token is shown once.
func TestAdminManagesPeopleInABrowser(t *testing.T) {
	w := StartWorld(t)
	srv := w.MustServe("server-2")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/settings/users")
	b.Do(chromedp.SendKeys(chromedp.CSS("#add-user [name=name]"), "vera"), chromedp.SendKeys(chromedp.CSS("#add-user [name=password]"), "short one"))
	b.Do(browsertest.Script(`for (let i = 0; i < 2; i++) document.querySelector("#add-user button").click()`))
	b.AwaitText("vera viewer")
	b.Do(answered())
	b.Do(chromedp.SendKeys(chromedp.CSS("#add-user [name=name]"), "vera"), chromedp.SendKeys(chromedp.CSS("#add-user [name=password]"), "short one"),
		browsertest.Click(chromedp.CSS("#add-user button")))
	b.AwaitText(`a user called "vera" exists already`)
	vera, _ := w.state.View().UserByName("vera")
	row := "#user-" + vera.ID
	b.Do(browsertest.Click(chromedp.CSS(row+" summary")), chromedp.SetValue(chromedp.CSS(row+" select"), "operator"), browsertest.Click(chromedp.CSS(row+" button")))
	b.AwaitText("vera operator")

	b.Do(chromedp.SendKeys(chromedp.CSS("#add-token [name=name]"), "ci"), browsertest.Click(chromedp.CSS("#add-token button")))
	b.AwaitText("It is shown this once")
	secret := b.Text(`document.getElementById("new-token-secret").textContent`)
	if _, known := w.state.View().APITokenByHash(hashSecret(secret)); !known {
		t.Errorf("%q is not the token", secret)
	}
	b.Screenshot("users-token")
	b.Do(browsertest.Click(chromedp.CSS("[data-copy]")))
	b.AwaitText("Copied")
	b.Do(chromedp.Reload())
	b.AwaitText("Make an API token")
	if strings.Contains(b.Text("document.documentElement.outerHTML"), secret) {
		t.Error("the token is shown again")
	}
	b.Do(chromedp.SendKeys(chromedp.CSS("[name=current_password]"), adminPassword), chromedp.SendKeys(chromedp.CSS("[name=new_password]"), "a new password"),
		browsertest.Click(chromedp.CSS("[data-call$='account/password'] button")), chromedp.WaitVisible(chromedp.ID("password")))
	b.Do(chromedp.SendKeys(chromedp.ID("username"), "admin"), chromedp.SendKeys(chromedp.ID("password"), "a new password"),
		chromedp.Submit(chromedp.ID("password")), chromedp.WaitVisible(chromedp.ID("live")))
}

// TestAdminAddsAHostInABrowser makes a token and sees its host join.
func TestAdminAddsAHostInABrowser(t *testing.T) {
	w := StartWorld(t)
	srv := w.MustServe("server-2")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/settings/add-host")
	b.AwaitText("No host has joined yet")
	b.Do(chromedp.SendKeys(chromedp.CSS("[name=segment]"), "dmz"), browsertest.Click(chromedp.CSS("#join button")))
	b.AwaitText("MOULT_TOKEN=MOULT1.")
	b.AwaitText("agent dmz admin")
	if n := len(w.state.View().JoinTokens()); n != 2 { // the other one was server-2's
		t.Errorf("%d tokens", n)
	}
	b.Screenshot("add-host-token")
	w.MustEnrol("fresh", "1.0.0", true)
	b.AwaitText("fresh now")
	b.AwaitText("MOULT_TOKEN=MOULT1.") // the commands stay
}

// TestAdminMovesLeadershipInABrowser presses twice and moves it once.
func TestAdminMovesLeadershipInABrowser(t *testing.T) {
	w := StartWorld(t)
	w.servers.list = append(w.servers.list, ServerStatus{ID: "s2", Name: "server-2", Voter: true, Healthy: true, Version: ownVersion})
	srv := w.MustServe("server-2")
	b := browsertest.Start(t)
	MustSignIn(b, srv, "/settings/servers")
	b.Do(clickTwice("transfer"), confirm())
	b.Do(chromedp.WaitVisible(chromedp.CSS("#transfer:not([aria-busy])")))
	if moved := w.servers.transferred.Load(); moved != 1 {
		t.Errorf("moved %d times", moved)
	}
}

// A host behind a relay joins through it, at the address that the relay has in
// the host's segment; only relays that can be used are offered.
func TestJoiningThroughARelay(t *testing.T) {
	w := StartWorld(t)
	relay := w.MustEnrol("relay-1", "1.0.0", true)
	w.MustPropose("host:relay-1", fleet.HostSegmentsChanged{HostID: relay, Also: []fleet.HostSegment{{Segment: "dmz", GossipAddr: "10.2.0.9:7946"}, {Segment: "odd", GossipAddr: "$(reboot):1"}}})
	w.MustEnrol("plain", "1.0.0", true)
	for _, name := range []string{"relay-1", relay} {
		out := w.Admin("POST", "/api/join-tokens", `{"segment":"dmz","relay":"`+name+`"}`).OK()
		if want := "MOULT_TOKEN=" + out["token"].(string) + " moult agent --join 10.2.0.9:7947"; out["command"] != want {
			t.Errorf("command %s, want %s", out["command"], want)
		}
		if linux := at(out, "scripts", "linux").(string); strings.Contains(linux, "curl") || !strings.Contains(linux, "--join 10.2.0.9:7947\n") || !strings.Contains(linux, "behind a relay") {
			t.Errorf("behind a relay: %s", linux)
		}
	}
	w.Admin("GET", "/settings/add-host", "").Shows("It joins through", "relay-1 (relay of default, dmz, odd)")
	for body, code := range map[string]string{
		`{"segment":"dmz","relay":"nobody"}`:                  "host_not_found",
		`{"segment":"dmz","relay":"plain"}`:                   "bad_request",
		`{"segment":"plant","relay":"relay-1"}`:               "bad_request",
		`{"segment":"odd","relay":"relay-1"}`:                 "bad_request",
		`{"segment":"dmz","relay":"relay-1","role":"server"}`: "bad_request",
	} {
		status := map[string]int{"host_not_found": 404, "bad_request": 400}[code]
		w.Admin("POST", "/api/join-tokens", body).Refused(status, code)
	}
	w.roster.set(relay, Observation{Version: "1.0.0", LastSeen: w.clock.Now()})
	w.Admin("POST", "/api/join-tokens", `{"segment":"dmz","relay":"relay-1"}`).Refused(409, "host_offline")
	if body := w.Admin("GET", "/settings/add-host", "").Body.String(); strings.Contains(body, "joins through") {
		t.Error("a relay that is offline is offered")
	}
	if got := w.Admin("GET", "/api/hosts/"+relay, "").OK()["also_segments"]; len(got.([]any)) != 2 {
		t.Errorf("the API tells of %v", got)
	}
}

// The only voter is not offered for removal; the Raft group would refuse it.
func TestOnlyServerIsNotOfferedForRemoval(t *testing.T) {
	w := StartWorld(t)
	offers := func(want string) {
		t.Helper()
		body := w.Admin("GET", "/settings/servers", "").Body.String()
		var offered []string
		for _, call := range regexp.MustCompile(`data-call="POST /api/servers/(\w+)/remove"`).FindAllStringSubmatch(body, -1) {
			offered = append(offered, call[1])
		}
		if got := strings.Join(offered, " "); got != want {
			t.Errorf("%q can be removed, not %q", got, want)
		}
		if strings.Contains(body, "It is the only voter; add another server first.") != !strings.Contains(want, "s1") {
			t.Errorf("is the reason there? %s", body)
		}
	}
	offers("")
	w.servers.list = append(w.servers.list, ServerStatus{ID: "s2", Name: "server-2"}) // not a voter yet
	offers("s2")
	w.servers.list[1].Voter = true
	offers("s1 s2")
}
