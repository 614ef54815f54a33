package web

import (
	"io"
	"mime"
	"net/http"
	"path"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// workDir is where a sandbox's workspace lies inside, and where browsing begins.
const workDir = "/work"

type filesData struct {
	Path    string
	Parts   []pathPart
	Entries []api.File
	Cut     bool
	Problem string
}

type pathPart struct{ Name, Path string }

// insidePath is a path in a sandbox: absolute and clean. The sandbox resolves it, never this process.
func insidePath(s string) string {
	if s == "" {
		return workDir
	}
	return path.Clean("/" + s)
}

func (p *Pages) files(v *visit) error {
	d, err := v.load("files")
	if err != nil {
		return err
	}
	dir := insidePath(v.r.URL.Query().Get("path"))
	list := &filesData{Path: dir, Parts: []pathPart{{"/", "/"}}}
	var walk strings.Builder
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if part != "" {
			walk.WriteString("/" + part)
			list.Parts = append(list.Parts, pathPart{part, walk.String()})
		}
	}
	d.Files = list
	if d.Sandbox.State == api.Running || d.Sandbox.State == api.Paused { // a paused one says why it lists nothing
		if list.Entries, list.Cut, err = v.ops.Files(v.r.Context(), v.actor, d.Sandbox.ID, dir); err != nil {
			list.Problem = sentence(fault.Public(err))
			if kind := fault.KindOf(err); kind == fault.Internal || kind == fault.Unauthenticated {
				return err
			}
		}
	}
	return v.showSandbox(d)
}

// download sends a file, or a directory as a tar file. It is never shown by the browser: what is inside a sandbox may be a page with scripts.
func (p *Pages) download(v *visit) error {
	q := v.r.URL.Query()
	name, tar := insidePath(q.Get("path")), q.Get("tar") == "yes"
	content, err := v.ops.ReadFile(v.r.Context(), v.actor, v.r.PathValue("id"), name, tar)
	if err != nil {
		return err
	}
	defer content.Close()
	// The first bytes are read before anything is answered: a file that is not there is still an error then.
	first := make([]byte, 32<<10)
	n, err := io.ReadFull(content, first)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	h := v.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("Content-Disposition", disposition(path.Base(name), tar))
	if _, err := v.w.Write(first[:n]); err != nil || n < len(first) {
		return nil // all is sent, or the browser has gone
	}
	if _, err := io.Copy(v.w, content); err != nil {
		v.log.Warn("send a file", "sandbox", v.r.PathValue("id"), "error", err)
		panic(http.ErrAbortHandler) // so that half a file does not look whole
	}
	return nil
}

// disposition names the file that a browser stores.
func disposition(name string, tar bool) string {
	if name == "/" || name == "." {
		name = "root"
	}
	name = plain(name)
	if tar {
		name += ".tar"
	}
	if s := mime.FormatMediaType("attachment", map[string]string{"filename": name}); s != "" {
		return s
	}
	return "attachment"
}

// upload puts one file into a directory, as it comes, without keeping it here.
func (p *Pages) upload(v *visit) error {
	id := v.r.PathValue("id")
	dir := insidePath(v.r.URL.Query().Get("path"))
	parts, err := v.r.MultipartReader()
	if err != nil {
		return fault.New(fault.Invalid, "the form could not be read").Because(err)
	}
	for {
		part, err := parts.NextPart()
		if err != nil {
			return fault.New(fault.Invalid, "choose a file first").Because(err)
		}
		name := part.FileName() // the last element only
		if part.FormName() != "file" || name == "" {
			continue
		}
		if name == "." || name == ".." || name == "/" || strings.ContainsAny(name, "/\x00") {
			return fault.New(fault.Invalid, "the file's name cannot be used")
		}
		if err := v.ops.WriteFile(v.r.Context(), v.actor, id, path.Join(dir, name), "", false, part); err != nil {
			return err
		}
		return v.to(localURL("sandboxes", id, "files")+"?"+pairsQuery([]string{"path", dir}), "uploaded")
	}
}
