package server

import (
	"context"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type fileList struct {
	ByID
	Path string `query:"path" required:"true" maxLength:"4096" doc:"of a directory inside, absolute"`
}

func (s *Server) fileOperations() []operation {
	where := param{"path", "query", "string", "inside the sandbox, absolute"}
	tar := param{"tar", "query", "boolean", "a tar stream of a directory"}
	return []operation{
		op("GET", "/sandboxes/{id}/files", "list-files", "A directory inside a running sandbox", control.ReadSandboxes, func(ctx context.Context, c *call, in *fileList) (api.Files, error) {
			items, cut, err := s.control.Files(ctx, c.actor, in.ID, in.Path)
			if items == nil {
				items = []api.File{}
			}
			return api.Files{Items: items, Truncated: cut}, err
		}),
		raw("GET", "/sandboxes/{id}/files/content", "read-file", "A file inside a running sandbox", control.ReadSandboxes, s.readFile).with(sandboxID, where, tar).media("", "application/octet-stream"),
		raw("PUT", "/sandboxes/{id}/files/content", "write-file", "Write a file inside a running sandbox", control.WriteSandboxes, s.writeFile).
			with(sandboxID, where, tar, param{"mode", "query", "string", "permissions, in octal"}).media("application/octet-stream", ""),
	}
}

func fileQuery(r *http.Request, known ...string) (where string, tar bool, err error) {
	if err := only(r, append(known, "path", "tar")...); err != nil {
		return "", false, err
	}
	q := r.URL.Query()
	if where = q.Get("path"); where == "" || len(where) > 4096 {
		return "", false, invalid("path")
	}
	if text := q.Get("tar"); text != "" {
		if tar, err = strconv.ParseBool(text); err != nil {
			return "", false, invalid("tar")
		}
	}
	return where, tar, nil
}

// readFile sends what a sandbox wrote: a download, whatever it looks like.
func (s *Server) readFile(w http.ResponseWriter, r *http.Request, c *call) error {
	where, tar, err := fileQuery(r)
	if err != nil {
		return err
	}
	content, err := s.control.ReadFile(r.Context(), c.actor, r.PathValue("id"), where, tar)
	if err != nil {
		return err
	}
	defer content.Close()
	name, media := path.Base(where), "application/octet-stream"
	if tar {
		name, media = name+".tar", "application/x-tar"
	}
	out := &late{to: watchedWriter{newSteady(w), s.lookout(c)}, begin: func() {
		w.Header().Set("Content-Type", media)
		// FormatMediaType is "" for what cannot be written; the name is the sandbox's.
		if d := mime.FormatMediaType("attachment", map[string]string{"filename": name}); d != "" {
			w.Header().Set("Content-Disposition", d)
		} else {
			w.Header().Set("Content-Disposition", "attachment")
		}
	}}
	if _, err := io.Copy(out, content); err != nil {
		return err
	}
	return out.end()
}

// writeFile takes content of any size; the sandbox's own limits bound it.
func (s *Server) writeFile(w http.ResponseWriter, r *http.Request, c *call) error {
	where, tar, err := fileQuery(r, "mode")
	if err != nil {
		return err
	}
	mode := r.URL.Query().Get("mode")
	if len(mode) > 8 {
		return invalid("mode")
	}
	content := watchedReader{patient{r.Body, http.NewResponseController(w)}, s.lookout(c)}
	if err := s.control.WriteFile(r.Context(), c.actor, r.PathValue("id"), where, mode, tar, content); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
