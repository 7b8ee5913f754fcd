package webui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
)

//go:embed templates
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// pages are the templates and static files, read once.
type pages struct {
	templates map[string]*template.Template // by page: templates/pages/NAME.html with what all share
	files     map[string]staticFile         // by path below static/
}

type staticFile struct {
	content []byte
	kind    string // media type
	etag    string
}

// mediaTypes are those of the static files that are served. They are not looked
// up: what a system says of .js varies, and browsers run no script under another type.
var mediaTypes = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

func loadPages() (*pages, error) {
	p := &pages{templates: map[string]*template.Template{}, files: map[string]staticFile{}}
	shared, err := template.New("").Funcs(templateFuncs).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	names, err := fs.Glob(templateFiles, "templates/pages/*.html")
	if err != nil {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	for _, name := range names {
		t, err := shared.Clone()
		if err == nil {
			t, err = t.ParseFS(templateFiles, name)
		}
		if err != nil {
			return nil, fmt.Errorf("read templates: %w", err)
		}
		p.templates[strings.TrimSuffix(path.Base(name), ".html")] = t
	}
	err = fs.WalkDir(staticFiles, "static", func(name string, d fs.DirEntry, err error) error {
		kind, served := mediaTypes[path.Ext(name)]
		if err != nil || d.IsDir() || !served {
			return err
		}
		content, err := staticFiles.ReadFile(name)
		sum := sha256.Sum256(content)
		p.files[strings.TrimPrefix(name, "static/")] = staticFile{
			content: content, kind: kind, etag: `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`,
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read static files: %w", err)
	}
	return p, nil
}

// static serves an embedded file. Browsers ask each time whether it changed: the
// next server that they talk to may run another version.
func (p *pages) static(w http.ResponseWriter, r *http.Request) error {
	f, exists := p.files[strings.TrimPrefix(r.URL.Path, "/static/")]
	if !exists || chi.URLParam(r, "name") == "" {
		return refuse(codeNotFound, "there is nothing at "+r.URL.Path)
	}
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("ETag", f.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
	return nil
}

// write writes the result of a page's template. It is rendered to memory first,
// so that a mistake in a template is an error and not half a page.
func (p *pages) write(w http.ResponseWriter, status int, page, part string, data any) error {
	var b bytes.Buffer
	if err := p.templates[page].ExecuteTemplate(&b, part, data); err != nil {
		return fmt.Errorf("render %s: %w", page, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w) // an error means that the client is gone
	return nil
}

// errorView is what the page of an error shows.
type errorView struct {
	shell
	Status  int
	Message string
}

// renderError writes an error as a page: with the navigation for who is signed in.
func (u *ui) renderError(w http.ResponseWriter, r *http.Request, status int, message string) {
	v := &errorView{Status: status, Message: message}
	v.Title = http.StatusText(status)
	if who, known := u.authenticate(r); known {
		v.shell = u.shell(r, who)
		v.Title = http.StatusText(status)
	}
	part := "page"
	if wantsFragment(r) {
		part = "live"
	}
	if err := u.pages.write(w, status, "error", part, v); err != nil {
		u.Logger.Error("render error page", "error", err)
		http.Error(w, message, status)
	}
}
