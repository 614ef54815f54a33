package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// securityText is RFC 9116: where to report what is wrong with us.
func (s *Server) securityText(w http.ResponseWriter, r *http.Request) {
	if s.contact == "" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	expires := s.clock().UTC().AddDate(1, 0, 0).Truncate(24 * time.Hour).Format(time.RFC3339)
	_, _ = io.WriteString(w, fmt.Sprintf("Contact: %s\nExpires: %s\nPreferred-Languages: en\nCanonical: %s://%s/.well-known/security.txt\n", s.contact, expires, s.base.Scheme, s.base.Host))
}

// servePages stands before the pages. They find out by themselves who is signed in; what another site makes a browser post is refused here.
func (s *Server) servePages(w http.ResponseWriter, r *http.Request, c *call) {
	c.operation = "page"
	if err := s.sameOrigin(r); err != nil {
		s.refuse(w, r, err)
		return
	}
	if err := s.pace(r.Context(), "pages:"+neighbourhood(c.from), perCaller); err != nil {
		s.refuse(w, r, err)
		return
	}
	rc := http.NewResponseController(w)
	if strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/form-data") {
		r.Body = patient{r.Body, rc} // files: of any size, but not at any pace
		s.pages.ServeHTTP(newSteady(w), r)
		return
	}
	if r.Method == http.MethodGet && unbounded(r.URL.Path) {
		s.pages.ServeHTTP(newSteady(w), r)
		return
	}
	_ = rc.SetWriteDeadline(time.Now().Add(handleTime + stallTime)) // a recorder in tests has none
	if _, err := buffer(w, r, maxBody); err != nil {
		s.refuse(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), handleTime)
	defer cancel()
	s.pages.ServeHTTP(w, r.WithContext(ctx))
}

// unbounded says whether a page is a file or a log as a whole: of any size, so that only a client that stops is cut off.
func unbounded(path string) bool {
	if path == "/audit/export" {
		return true
	}
	id, ok := strings.CutPrefix(path, "/sandboxes/")
	id, download := strings.CutSuffix(id, "/download")
	return ok && download && id != "" && !strings.Contains(id, "/")
}
