package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
)

// members writes n members.
func members(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"k%d":1`, i)
	}
	return b.String()
}

// A body of very many small parts costs no more than one of few large ones.
func TestManyMembers(t *testing.T) {
	s := newStage(t)
	token := s.token(s.a, api.Viewer)
	for name, c := range map[string]struct {
		body, code string
		status     int
	}{
		"members":        {`{"text":"version: 1\n",` + members(150_000) + "}", codeTooLarge, 413},
		"elements":       {`{"text":[` + strings.Repeat("1,", 500_000) + "1]}", codeTooLarge, 413},
		"inside":         {`{"text":[` + strings.TrimSuffix(strings.Repeat("{"+members(100)+"},", 1000), ",") + "]}", codeTooLarge, 413},
		"just as many":   {"{" + members(maxPieces) + "}", codeValidation, 422},
		"empty objects":  {`{"text":[` + strings.Repeat("{},", 9_990) + "{}]}", codeValidation, 422},
		"one large text": {`{"text":"` + strings.Repeat(`A`, 1<<17) + `"}`, "", 200},
	} {
		began := time.Now()
		got := s.ask("POST", "/policies/check", token, c.body)
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("%s: it took %v", name, d)
		}
		if c.status == 200 {
			got.want(200)
		} else {
			got.problem(c.status, c.code)
		}
	}
}

// Whatever huma reads as JSON was looked at before.
func TestStrictUnderAnyName(t *testing.T) {
	for media, refused := range map[string]bool{
		"": true, "application/json": true, "application/json; charset=utf-8": true, "application/x+json": true, "x+application/json": true, "APPLICATION/JSON": true,
		"text/plain": false, "application/x-www-form-urlencoded": false,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		r.Header.Set("Content-Type", media)
		if got := strict(r, []byte(`{"a":1,"a":2}`)) != nil; got != refused {
			t.Errorf("%q: refused %v", media, got)
		}
	}
}
