package browsertest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// Who asks a page that is being left, time and again, gets the next one's answer.
func TestPagesThatAreLeft(t *testing.T) {
	const pages = 20
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &n)
		w.Header().Set("Content-Type", "text/html")
		if n < pages {
			fmt.Fprintf(w, `<p>page %d<script>setTimeout(() => { location = "/%d" }, 20)</script>`, n, n+1)
			return
		}
		fmt.Fprint(w, "<p>the last page")
	}))
	defer srv.Close()
	b := Start(t)
	b.Do(chromedp.Navigate(srv.URL + "/0"))
	for deadline := time.Now().Add(patience); b.Text(`new Promise((there) => setTimeout(() => there(location.pathname), 15))`) != fmt.Sprintf("/%d", pages); {
		if time.Now().After(deadline) {
			t.Fatal("the last page is not reached")
		}
	}
	b.AwaitText("the last page")
}
