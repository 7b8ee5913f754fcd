package webui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"time"

	"github.com/go-chi/chi/v5"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/*
var staticFiles embed.FS

// pages are the templates and static files, read once.
type pages struct {
	templates *template.Template
	files     map[string]staticFile
}

type staticFile struct {
	content []byte
	kind    string // media type
	etag    string
}

// mediaTypes are those of the static files. They are not looked up: what a system
// says of .js varies, and browsers run no script under another type.
var mediaTypes = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

func loadPages() (*pages, error) {
	p := &pages{files: map[string]staticFile{}}
	var err error
	p.templates, err = template.New("").Funcs(template.FuncMap{
		"ago": ago, "clock": clock, "percent": percent,
	}).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	entries, err := fs.ReadDir(staticFiles, "static")
	if err != nil {
		return nil, fmt.Errorf("read static files: %w", err)
	}
	for _, e := range entries {
		content, err := staticFiles.ReadFile(path.Join("static", e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read static files: %w", err)
		}
		sum := sha256.Sum256(content)
		p.files[e.Name()] = staticFile{
			content: content, kind: mediaTypes[path.Ext(e.Name())],
			etag: `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`,
		}
	}
	return p, nil
}

// static serves an embedded file. Browsers ask each time whether it changed: the
// next server that they talk to may run another version.
func (p *pages) static(w http.ResponseWriter, r *http.Request) error {
	f, exists := p.files[chi.URLParam(r, "name")]
	if !exists {
		return refuse(codeNotFound, "there is nothing at "+r.URL.Path)
	}
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("ETag", f.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
	return nil
}

// page writes a template's result. It is rendered to memory first, so that a
// mistake in a template is an error and not half a page.
func (p *pages) page(w http.ResponseWriter, status int, name string, data any) error {
	var b bytes.Buffer
	if err := p.templates.ExecuteTemplate(&b, name, data); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w) // an error means that the client is gone
	return nil
}

// renderError writes an error as a page.
func (p *pages) renderError(w http.ResponseWriter, logger *slog.Logger, status int, message string) {
	data := struct{ Title, Message string }{http.StatusText(status), message}
	if err := p.page(w, status, "error.html", data); err != nil {
		logger.Error("render error page", "error", err)
		http.Error(w, message, status)
	}
}

// ago tells how long ago something was, for people.
func ago(now time.Time, t *time.Time) string {
	if t == nil {
		return "never"
	}
	switch d := now.Sub(*t); {
	case d < 5*time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func percent(p *progressJSON) int64 {
	if p == nil || p.Total <= 0 {
		return 0
	}
	return min(100, 100*p.Done/p.Total)
}
