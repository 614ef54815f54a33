package credential

import (
	"errors"
	"net/http"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
)

// TestEdit changes conditions under a lender that is open: the next request is held to them, and of what is under way only what fits goes on.
func TestEdit(t *testing.T) {
	s, ring := testStore(t)
	must(t, s.Add(ring, staticMeta("one"), Material{Value: text("value-0123456789")}))
	l := open(t, s, ring, Options{}, "one")
	below := request()
	below.Path = "/v1/x"
	inside, err := l.Lend(t.Context(), "one", below)
	must(t, err)
	outside, err := l.Lend(t.Context(), "one", request())
	must(t, err)
	edit := func(f func(*Meta)) error {
		return s.Edit(t.Context(), ring, "one", func(m Meta) (Meta, error) { f(&m); return m, nil })
	}
	must(t, edit(func(m *Meta) { m.Scope.Paths, m.Header, m.Prefix = []string{"/v1/"}, "x-key", "" }))
	if err := outside.Revoked(); fault.KindOf(err) != fault.Denied {
		t.Errorf("what does not fit any more: %v", err)
	}
	if err := outside.Inject(http.Header{}); err == nil {
		t.Error("what does not fit any more is put in")
	}
	if err := inside.Revoked(); err != nil {
		t.Errorf("what still fits: %v", err)
	}
	if _, err := l.Lend(t.Context(), "one", request()); fault.KindOf(err) != fault.Denied {
		t.Errorf("outside of the new conditions: %v", err)
	}
	g, err := l.Lend(t.Context(), "one", below)
	must(t, err)
	h := http.Header{}
	must(t, g.Inject(h))
	if h.Get("X-Key") != "value-0123456789" || len(h) != 1 {
		t.Errorf("in the new header: %v", h)
	}
	// A rotation makes nobody's request wrong.
	must(t, s.Rotate(t.Context(), ring, "one", Material{Value: text("value-of-tomorrow")}))
	if inside.Revoked() != nil || g.Revoked() != nil {
		t.Error("a rotation revokes")
	}
	before := fileOf(t, s, "one")
	for name, f := range map[string]func(*Meta){
		"no host":         func(m *Meta) { m.Scope.Hosts = nil },
		"another name":    func(m *Meta) { m.Name = "two" },
		"another kind":    func(m *Meta) { m.Kind, m.User = Basic, "u" },
		"another birth":   func(m *Meta) { m.Created = m.Created.Add(1) },
		"header Host":     func(m *Meta) { m.Header = "Host" },
		"settings of AWS": func(m *Meta) { m.AWS = &AWSSettings{AccessKeyID: "AKIAIOSFODNN7EXAMPLE"} },
	} {
		if err := edit(f); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	sentinel := errors.New("no")
	if err := s.Edit(t.Context(), ring, "one", func(m Meta) (Meta, error) { return m, sentinel }); !errors.Is(err, sentinel) {
		t.Error(err)
	}
	if err := s.Edit(t.Context(), seal.NewKeyring(seal.NewKey()), "one", func(m Meta) (Meta, error) { m.Scope.Paths = nil; return m, nil }); err == nil {
		t.Error("edited without its key")
	}
	if err := s.Edit(t.Context(), ring, "two", func(m Meta) (Meta, error) { return m, nil }); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
	if fileOf(t, s, "one") != before {
		t.Error("a refused edit wrote something")
	}
	must(t, s.Remove(t.Context(), "one"))
	if err := inside.Revoked(); !errors.Is(err, errGone) {
		t.Errorf("after the removal: %v", err)
	}
}
