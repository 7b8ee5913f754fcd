package browsertest

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// Scheme is a colour scheme that a reader may prefer.
type Scheme string

// The colour schemes.
const (
	Light Scheme = "light"
	Dark  Scheme = "dark"
)

// Prefer sets what the pages are told of their reader: the colour scheme, and
// that nothing shall move.
func (b *Browser) Prefer(s Scheme) {
	b.tb.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: string(s)}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
	if err != nil {
		b.tb.Fatal(err)
	}
}

// axe is axe-core; see testdata/README.md.
//
//go:embed testdata/axe.min.js
var axe string

// CheckAccessibility fails the test for each thing on the page, where says which,
// that axe-core finds wrong.
func (b *Browser) CheckAccessibility(where string) {
	b.tb.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	// Run by the debugger, which the page's policy does not concern.
	err := chromedp.Do(ctx, chromedp.Evaluate[chromedp.Void]("if (!window.axe) {"+axe+"}"))
	if err != nil {
		b.tb.Fatal(err)
	}
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](
		`axe.run(document, {resultTypes: ["violations"], preload: false}).then((r) => JSON.stringify({passed: r.passes.length, violations: r.violations}))`,
		chromedp.EvalAwaitPromise))
	if err != nil {
		b.tb.Fatal(err)
	}
	var result struct {
		Passed     int `json:"passed"`
		Violations []struct {
			ID, Help string
			Nodes    []struct {
				HTML           string   `json:"html"`
				Target         []string `json:"target"`
				FailureSummary string   `json:"failureSummary"`
			} `json:"nodes"`
		} `json:"violations"`
	}
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		b.tb.Fatal(err)
	}
	if result.Passed == 0 {
		b.tb.Errorf("%s: axe checked nothing", where)
	}
	for _, v := range result.Violations {
		var places []string
		for _, n := range v.Nodes {
			places = append(places, fmt.Sprintf("%s %s: %s", strings.Join(n.Target, " "), n.HTML, strings.ReplaceAll(n.FailureSummary, "\n", " ")))
		}
		b.tb.Errorf("%s: %s (%s): %s", where, v.Help, v.ID, strings.Join(places, "; "))
	}
}
