package web

import (
	"crypto/sha256"
	"encoding/base64"
	"io/fs"
	"net/http"
	"path"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// asset is a static file. Its address holds its hash, so that it may be kept for ever.
type asset struct {
	content []byte
	kind    string
	hash    string
}

func readAssets() (map[string]asset, error) {
	kinds := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
	out := map[string]asset{}
	err := fs.WalkDir(files, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || kinds[path.Ext(name)] == "" {
			return err
		}
		content, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		out[strings.TrimPrefix(name, "static/")] = asset{content: content, kind: kinds[path.Ext(name)], hash: base64.RawURLEncoding.EncodeToString(sum[:9])}
		return nil
	})
	return out, err
}

// assetPath is the address of a static file, for templates.
func (p *Pages) assetPath(name string) string { return "/static/" + p.assets[name].hash + "/" + name }

// static answers with a static file: by the address with its hash, which may be kept, or by another hash, of an older page, which may not.
func (p *Pages) static(w http.ResponseWriter, r *http.Request) {
	a, ok := p.assets[r.PathValue("name")]
	if !ok {
		v := p.visit(w, r)
		v.fail(fault.New(fault.NotFound, "there is no such file"))
		return
	}
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-cache")
	if r.PathValue("hash") == a.hash {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	h.Set("ETag", `"`+a.hash+`"`)
	if r.Header.Get("If-None-Match") == `"`+a.hash+`"` {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(a.content) // the browser may have gone
}
