package gateway

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/audit"
)

// TestReturned: the record of an inspected request says which line of policy lent what, and what came back as the program got it.
func TestReturned(t *testing.T) {
	l := lend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-"+r.Header.Get("Authorization")[7:])
		switch r.URL.Query().Get("kind") {
		case "echo":
			fmt.Fprint(w, "you sent ", r.Header.Get("Authorization"))
		case "gzip":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			fmt.Fprint(z, "in an archive")
			_ = z.Close()
		case "empty":
			w.WriteHeader(http.StatusNoContent)
		case "most":
			_, _ = w.Write(make([]byte, maxDigest))
		case "large":
			_, _ = w.Write(make([]byte, maxDigest+1))
		case "counted":
			w.Header().Set("Content-Length", fmt.Sprint(maxDigest+1))
			_, _ = w.Write(make([]byte, maxDigest+1))
		case "cut":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "half")
		}
	}, "", mainCredential)
	l.versions(t, func(t *testing.T, c *http.Client) {
		for kind, hashed := range map[string]bool{"echo": true, "gzip": true, "most": true, "empty": false, "large": false, "counted": false, "cut": false} {
			path := "/repos/acme/" + url.PathEscape(t.Name()+kind)
			r := must(http.NewRequest("GET", l.url(path+"?kind="+kind), nil))
			r.Header.Set("Authorization", "Bearer "+placeholder)
			answer, err := c.Do(r)
			var body []byte
			if err == nil {
				body, err = io.ReadAll(answer.Body)
				_ = answer.Body.Close()
			}
			if (err != nil) != (kind == "cut") {
				t.Errorf("%s: %v", kind, err)
			}
			e := l.find(kind, func(e audit.Event) bool { return e.Kind == audit.CrossingFinished && e.Path == path })
			want := ""
			if hashed {
				want = fmt.Sprintf("sha256:%x", sha256.Sum256(body))
			}
			if e.Digest != want || bytes.Contains(body, []byte(canary)) {
				t.Errorf("%s: digest %q, want %q, of %.80q", kind, e.Digest, want, body)
			}
			if kind != "empty" && e.Type != "application/x-"+placeholder {
				t.Errorf("%s: type %q", kind, e.Type)
			}
			if e.Credential != "main" || !strings.HasPrefix(e.Grant, "t.yaml:") {
				t.Errorf("%s: lent %q by %q", kind, e.Credential, e.Grant)
			}
			if d := l.find("decision", func(d audit.Event) bool { return d.Kind == audit.CrossingDecided && d.Path == path }); d.Grant != e.Grant || d.Digest != "" {
				t.Errorf("%s: %+v", kind, d)
			}
		}
	})
}
