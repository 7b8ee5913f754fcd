package webui

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// The tests record each answer that the API gives them, by operation, status and
// code, and at their end hold the record to the OpenAPI document: what was
// answered must be described, and what is described must have been answered.

// recorded is the record of all tests of this run.
var recorded = record{seen: map[string]bool{}}

type record struct {
	mu   sync.Mutex
	seen map[string]bool // "GET /api/hosts 400 bad_request"
}

func (r *record) note(h http.Handler, req *http.Request, rec *httptest.ResponseRecorder) {
	match := chi.NewRouteContext()
	if !h.(chi.Routes).Match(match, req.Method, req.URL.Path) {
		return // not a route
	}
	op := req.Method + " " + match.RoutePattern()
	if forBrowsers(op) || rec.Code == http.StatusInternalServerError {
		return
	}
	line := fmt.Sprintf("%s %d", op, rec.Code)
	if rec.Code >= http.StatusBadRequest && rec.Header().Get("Content-Type") == "application/json" {
		var out errorJSON
		_ = json.Unmarshal(rec.Body.Bytes(), &out)
		line += " " + out.Error.Code
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[line] = true
}

// describedAnswers reads the document: lines as in the record.
func describedAnswers(doc map[string]any) map[string]bool {
	lines := map[string]bool{}
	for path, operations := range at(doc, "paths").(map[string]any) {
		for method, op := range operations.(map[string]any) {
			for status, response := range at(op, "responses").(map[string]any) {
				line := strings.ToUpper(method) + " " + path + " " + status
				if name, is := at(response, "$ref").(string); is {
					response = at(doc, strings.Split(strings.TrimPrefix(name, "#/"), "/")...)
				}
				if status < "400" || at(response, "content", "application/json") == nil {
					lines[line] = true
					continue
				}
				codes, _, _ := strings.Cut(at(response, "description").(string), ":")
				for code := range strings.SplitSeq(codes, ", ") {
					lines[line+" "+code] = true
				}
			}
		}
	}
	return lines
}

// compare returns what of the record is not described and, when all tests ran,
// what is described and was never answered.
func (r *record) compare(doc map[string]any, all bool) (problems []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	described := describedAnswers(doc)
	for line := range r.seen {
		// HEAD is GET without the body, which chi makes of it.
		if !described[line] && !strings.HasPrefix(line, "HEAD ") {
			problems = append(problems, line+" was answered and is not described in openapi.json")
		}
	}
	if all {
		for line := range described {
			if !r.seen[line] {
				problems = append(problems, line+" is described in openapi.json, and no test was answered so")
			}
		}
	}
	slices.Sort(problems)
	return problems
}

// recordedM runs the tests and then looks at the record.
type recordedM struct{ m *testing.M }

func (m recordedM) Run() int {
	code := m.m.Run()
	all := code == 0
	for _, name := range []string{"test.run", "test.skip", "test.list"} {
		all = all && flag.Lookup(name).Value.String() == ""
	}
	var doc map[string]any
	err := json.Unmarshal(openAPI, &doc)
	problems := recorded.compare(doc, all)
	if err != nil {
		problems = append(problems, err.Error())
	}
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, p)
		code = max(code, 1)
	}
	return code
}

// TestRecordFindsWhatIsWrong breaks the document.
func TestRecordFindsWhatIsWrong(t *testing.T) {
	r := record{seen: map[string]bool{}}
	for line := range describedAnswers(mustDocument(t)) {
		r.seen[line] = true
	}
	if p := r.compare(mustDocument(t), true); len(p) != 0 || len(r.seen) < 200 {
		t.Errorf("%d answers, %v", len(r.seen), p)
	}
	doc := mustDocument(t)
	delete(at(doc, "paths", "/api/hosts", "get", "responses").(map[string]any), "400")
	if p := r.compare(doc, true); len(p) != 1 || !strings.Contains(p[0], "GET /api/hosts 400 bad_request was answered") {
		t.Errorf("%v", p)
	}
	delete(r.seen, "GET /api/jobs/{id} 404 job_not_found")
	if p := r.compare(mustDocument(t), true); len(p) != 1 || !strings.Contains(p[0], "GET /api/jobs/{id} 404 job_not_found is described") {
		t.Errorf("%v", p)
	}
	if p := r.compare(mustDocument(t), false); len(p) != 0 {
		t.Errorf("part of the tests need not have been answered all: %v", p)
	}
}

// TestRefusalsThatRoutesShare takes each route for the refusals that it gives before they look at what is theirs.
func TestRefusalsThatRoutesShare(t *testing.T) {
	for _, op := range slices.Sorted(maps.Keys(roleMatrix)) {
		role := roleMatrix[op]
		method, pattern, _ := strings.Cut(op, " ")
		if role == public || isPage(pattern) {
			continue
		}
		t.Run(strings.ReplaceAll(op, "/", "|"), func(t *testing.T) {
			w := StartWorld(t)
			path := strings.NewReplacer("{id}", "nobody", "{version}", "0.0.0").Replace(pattern)
			index := w.state.View().Index()
			w.Call("", method, path, "").Refused(http.StatusUnauthorized, codeUnauthenticated)
			w.ready = errors.New("catching up with the leader")
			w.Call("moult_of_a_minute_ago", method, path, "").Refused(http.StatusServiceUnavailable, codeNotReady)
			w.ready = nil
			if role != fleet.Viewer {
				w.Call(viewerToken, method, path, "").Refused(http.StatusForbidden, codeForbidden)
			}
			if method == "GET" {
				return
			}
			foreign := httptest.NewRequest(method, path, nil)
			foreign.AddCookie(w.MustSession(t, "u1"))
			foreign.Header.Set("Origin", "https://evil.example")
			index++ // the session
			w.Do(foreign).Refused(http.StatusForbidden, codeCrossOrigin)
			if op != "POST /api/releases" { // whose body is no JSON
				w.Admin(method, path, `{"surplus":1}`).Refused(http.StatusBadRequest, "bad_request")
				w.Admin(method, path, `{`).Refused(http.StatusBadRequest, "bad_request")
				w.Admin(method, path, `{"x":"`+strings.Repeat("x", maxJSONBody)+`"}`).Refused(http.StatusRequestEntityTooLarge, codeTooLarge)
			}
			if got := w.state.View().Index(); got != index {
				t.Errorf("what was refused came into the log: %d, not %d", got, index)
			}
		})
	}
}
