// Package browsertest drives a real headless browser in tests. Only tests
// import it.
//
// A test starts one with Start, which ends it with the test. Where there is no
// chromium the test is skipped with the reason, except where CI is set in the
// environment: there it fails. Uncaught errors of the pages' scripts and
// refusals by their Content-Security-Policy fail the test.
package browsertest

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// Limits of a test's browser.
const (
	lifetime     = 8 * time.Minute // of the browser: to look at each page takes minutes on a busy machine
	patience     = 30 * time.Second
	pollInterval = 50 * time.Millisecond
)

// Step is one thing to do in the browser: what chromedp calls an action.
type Step = chromedp.Action[chromedp.Void]

// Browser is a headless browser with one page. It is for one goroutine.
type Browser struct {
	tb  testing.TB
	ctx context.Context
}

// Trusting has a browser believe servers whose chain of certificates has this one in
// it, and them alone; where it is not given a browser believes the machine's CAs.
func Trusting(cert *x509.Certificate) chromedp.ExecAllocatorOption {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(sum[:]))
}

// Start starts a browser with a window of 1280 by 900 pixels.
func Start(tb testing.TB, more ...chromedp.ExecAllocatorOption) *Browser {
	tb.Helper()
	path := findChromium()
	if path == "" {
		const missing = "no chromium on this machine; install Debian's package chromium to run the browser tests"
		if os.Getenv("CI") != "" {
			tb.Fatal(missing)
		}
		tb.Skip(missing)
	}
	// The tests often run as root, where chromium's own sandbox does not work.
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true))
	options = append(options, more...)
	ctx, cancelTime := context.WithTimeout(context.Background(), lifetime)
	ctx, cancelAllocator := chromedp.NewExecAllocator(ctx, options...)
	ctx, cancel := chromedp.NewContext(ctx)
	tb.Cleanup(func() { cancel(); cancelAllocator(); cancelTime() })
	b := &Browser{tb: tb, ctx: ctx}
	if err := chromedp.Do(ctx); err != nil { // starts it, for as long as this context lives
		tb.Fatal(err)
	}
	if err := chromedp.Listen(ctx, b.handle); err != nil {
		tb.Fatal(err)
	}
	return b
}

func findChromium() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// handle says yes to each dialog, and reports what pages must not do. It is
// called from the browser's event loop and must not wait for it.
func (b *Browser) handle(event any) {
	switch e := event.(type) {
	case *page.EventJavascriptDialogOpening:
		go func() {
			_, _ = chromedp.Call(b.ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true})
		}()
	case *runtime.EventExceptionThrown:
		b.tb.Errorf("script error: %v", (&chromedp.ExceptionError{ExceptionDetails: e.ExceptionDetails}).Error())
	case *log.EventEntryAdded:
		if strings.Contains(e.Entry.Text, "Content Security Policy") {
			b.tb.Errorf("refused by the policy: %s %s", e.Entry.Text, e.Entry.URL)
		}
	}
}

// Do does steps one after the other.
func (b *Browser) Do(steps ...Step) {
	b.tb.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.Screenshot(b.tb.Name() + "-failed")
		b.tb.Fatal(err)
	}
}

// Loaded waits until the page's scripts are there: nobody hears what is done before.
func Loaded() Step {
	loaded := chromedp.Evaluate[bool](`document.readyState === "complete"`)
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		ticker := time.NewTicker(pollInterval)
		defer ticker.Stop()
		for {
			if done, err := loaded(ctx, t); done || err != nil && !pageLeft(err) {
				return err
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

// Click clicks on an element once the page's scripts are there.
func Click[S chromedp.Selectable](sel S) Step {
	return chromedp.Steps(Loaded(), chromedp.Click(sel))
}

// Script runs a script once the page's own are there.
func Script(script string) Step {
	return chromedp.Steps(Loaded(), chromedp.Evaluate[chromedp.Void](script))
}

// Text returns what a JavaScript expression gives, or promises, as text.
func (b *Browser) Text(expression string) string {
	b.tb.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	text, err := evaluate(ctx, chromedp.Evaluate[string]("Promise.resolve("+expression+").then(String)", chromedp.EvalAwaitPromise))
	if err != nil {
		b.tb.Fatal(err)
	}
	return text
}

// evaluate asks the page. One that is left meanwhile does not answer: then it asks the
// next.
func evaluate(ctx context.Context, ask chromedp.Action[string]) (string, error) {
	for {
		text, err := chromedp.Run(ctx, ask)
		if err == nil || !pageLeft(err) {
			return text, err
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return "", err
		}
	}
}

// pageLeft tells whether a question failed because the browser left the page that was
// asked.
func pageLeft(err error) bool {
	var refused *cdproto.Error
	return errors.As(err, &refused) && slices.ContainsFunc([]string{
		"Inspected target navigated or closed", "Execution context was destroyed", "Cannot find context with specified id",
	}, func(s string) bool { return strings.Contains(refused.Message, s) })
}

// Cookies returns the cookies that the browser has for the page.
func (b *Browser) Cookies() []*network.Cookie {
	b.tb.Helper()
	got, err := chromedp.Call(b.ctx, network.GetCookies, network.GetCookiesParams{})
	if err != nil {
		b.tb.Fatal(err)
	}
	return got.Cookies
}

// Reach tries to open a page, and tells why it cannot.
func (b *Browser) Reach(url string) error {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	return chromedp.Do(ctx, chromedp.Navigate(url))
}

// AwaitText waits until the page shows a text, white space folded.
func (b *Browser) AwaitText(text string) {
	b.tb.Helper()
	b.await(text, true)
}

// AwaitNoText waits until the page no longer shows a text.
func (b *Browser) AwaitNoText(text string) {
	b.tb.Helper()
	b.await(text, false)
}

func (b *Browser) await(text string, want bool) {
	b.tb.Helper()
	deadline := time.Now().Add(patience)
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		body, err := evaluate(b.ctx, chromedp.Evaluate[string]("document.body ? document.body.innerText : ''"))
		if err != nil {
			b.tb.Fatal(err)
		}
		shown := strings.Join(strings.Fields(body), " ")
		if strings.Contains(shown, text) == want {
			return
		}
		if time.Now().After(deadline) {
			b.Screenshot(b.tb.Name() + "-failed")
			b.tb.Fatalf("waited %v for %q to be shown: %v; the page reads: %s", patience, text, want, shown)
		}
		<-ticker.C
	}
}

// Screenshot writes the whole page as NAME.png into the directory that
// MOULT_SCREENSHOTS names, which it makes; without one it does nothing.
func (b *Browser) Screenshot(name string) {
	b.tb.Helper()
	dir := os.Getenv("MOULT_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.tb.Logf("screenshot %s: %v", name, err)
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.tb.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, strings.ReplaceAll(name, "/", "-")+".png"), png, 0o644); err != nil {
		b.tb.Error(err)
	}
}
