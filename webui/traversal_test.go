package webui

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"moult/consensus/fleet"
)

// Spellings of a way out of wherever a name is looked up.
var waysOut = []string{
	"../routes.go", "..%2froutes.go", "%2e%2e/routes.go", "%2e%2e%2froutes.go", "..%5croutes.go", "..\\routes.go",
	"..%252froutes.go", "....//routes.go", "..;/routes.go", "%c0%ae%c0%ae/routes.go", "/etc/passwd", "%2fetc%2fpasswd",
	strings.Repeat("../", 20) + "etc/passwd", strings.Repeat("%2e%2e%2f", 20) + "etc%2fpasswd", "app.css%00", "routes.go", ".", "..", "%00",
}

// No path parameter of any route, spelt as it may be, leads to a file or to another
// thing than it names: what is not there is not found, and nothing changes.
func TestNoPathParameterLeadsElsewhere(t *testing.T) {
	w := StartWorld(t)
	srv := httptest.NewServer(w.handler)
	defer srv.Close()
	ops := 0
	for op := range walk(t, w.handler) {
		method, pattern, _ := strings.Cut(op, " ")
		head, after, has := strings.Cut(pattern, "{")
		if !has {
			continue
		}
		ops++
		_, after, _ = strings.Cut(after, "}")
		for _, way := range waysOut {
			decided := w.decided()
			code, body := rawRequest(t, srv.Listener.Addr().String(), method, head+way+after)
			switch {
			case strings.Contains(body, "package webui") || strings.Contains(body, "root:"):
				t.Errorf("%s %s shows a file", method, head+way+after)
			case code >= 500:
				t.Errorf("%s %s: %d %s", method, head+way+after, code, body)
			case code == http.StatusOK && !strings.HasSuffix(way, "..") && way != ".":
				t.Errorf("%s %s: 200 %.200s", method, head+way+after, body)
			}
			if w.decided() != decided {
				t.Errorf("%s %s changed the state", method, head+way+after)
			}
		}
	}
	if ops < 15 {
		t.Errorf("only %d routes have a parameter", ops)
	}
}

// rawRequest sends a path as it is written: a client would tidy it up first.
func rawRequest(t *testing.T, addr, method, path string) (code int, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", method, path, adminToken)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, "" // what is no path at all is not answered
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// Names that people give are no paths: those of users, segments and labels, and of
// what is uploaded.
func TestNamesAreNoPaths(t *testing.T) {
	w := StartWorld(t)
	id := w.MustEnrol("a", "1.0.0", true)
	for _, name := range []string{"../x", "a/b", "./x", "/etc/passwd", "a\\b", "x\x00y", "..%2fx"} {
		quoted := fmt.Sprintf("%q", name)
		if strings.ContainsRune(name, 0) {
			quoted = `"x\u0000y"`
		}
		w.Admin("POST", "/api/users", `{"name":`+quoted+`,"role":"viewer","password":"long enough"}`).Refused(400, fleet.CodeBadRequest)
		w.Admin("POST", "/api/join-tokens", `{"segment":`+quoted+`}`).Refused(400, fleet.CodeBadRequest)
		w.Admin("PUT", "/api/hosts/"+id+"/labels", `{"labels":{`+quoted+`:"x"}}`).Refused(400, fleet.CodeBadRequest)
		w.Admin("POST", "/api/fleet/update", `{"target_version":`+quoted+`}`).Refused(404, "release_not_found")
		w.Admin("POST", "/api/fleet/update", `{"host_ids":[`+quoted+`]}`).Refused(404, "host_not_found")
	}
}
