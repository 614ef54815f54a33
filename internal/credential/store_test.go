package credential

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
)

func TestStoreLife(t *testing.T) {
	s, ring := testStore(t)
	must(t, s.Add(ring, staticMeta("one"), Material{Value: text("first-value-abcd")}))
	if err := s.Add(ring, staticMeta("one"), Material{Value: text("x")}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("added twice: %v", err)
	}
	info, err := os.Stat(s.path("one"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	m, err := s.Get(t.Context(), "one")
	if err != nil || m.Header != "Authorization" || m.Prefix != "Bearer " || m.Scope.Ports[0] != 443 || m.Shape != Generic || m.Created.IsZero() {
		t.Errorf("%+v, %v", m, err)
	}
	masks, err := s.Masks(t.Context(), ring, "one")
	if err != nil || masks[Value] != "••••abcd" {
		t.Errorf("%v, %v", masks, err)
	}
	l := open(t, s, ring, Options{}, "one")
	if got := lent(t, l, "one"); got != "Bearer first-value-abcd" {
		t.Error(got)
	}
	// What happens from now on the lender sees by what it holds: no path, no key.
	must(t, s.Rotate(t.Context(), ring, "one", Material{Value: text("second-value-efgh")}))
	if got := lent(t, l, "one"); got != "Bearer second-value-efgh" {
		t.Error(got)
	}
	next := seal.NewKey()
	newer := seal.NewKeyring(next)
	if n, err := s.Rewrap(t.Context(), newer); n != 0 || fault.KindOf(err) != fault.Unavailable {
		t.Errorf("rewrapped without the old key: %d, %v", n, err)
	}
	// A ring with both keys comes from a vault in real life.
	if got := lent(t, l, "one"); got != "Bearer second-value-efgh" {
		t.Error(got)
	}
	g, err := l.Lend(t.Context(), "one", request())
	must(t, err)
	must(t, g.Revoked())
	must(t, s.Remove(t.Context(), "one"))
	if err := g.Revoked(); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a grant outlives its credential: %v", err)
	}
	if err := g.Inject(map[string][]string{}); err == nil {
		t.Error("injected after removal")
	}
	if _, err := l.Lend(t.Context(), "one", request()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("lent after removal: %v", err)
	}
	// Another credential of the same name is another credential.
	must(t, s.Add(ring, staticMeta("one"), Material{Value: text("third-value")}))
	if _, err := l.Lend(t.Context(), "one", request()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("lent the successor: %v", err)
	}
	if _, err := l.Lend(t.Context(), "other", request()); fault.KindOf(err) != fault.NotFound {
		t.Errorf("lent what was not opened: %v", err)
	}
	plain := request()
	plain.Channel = Plain
	l2 := open(t, s, ring, Options{}, "one")
	if _, err := l2.Lend(t.Context(), "one", plain); fault.KindOf(err) != fault.Denied {
		t.Errorf("lent over plain HTTP: %v", err)
	}
}

func TestRewrapInUse(t *testing.T) {
	s, _ := testStore(t)
	vault := seal.OpenVault(filepath.Join(t.TempDir(), "seal"), os.Getenv)
	_, err := vault.Init(t.Context(), seal.Source{})
	must(t, err)
	use := func(f func(*seal.Keyring) error) { t.Helper(); must(t, vault.Use(t.Context(), f)) }
	var l *Lender
	use(func(r *seal.Keyring) error {
		for _, name := range []Name{"a", "b", "c"} {
			must(t, s.Add(r, staticMeta(name), Material{Value: text("value-of-" + string(name))}))
		}
		l = open(t, s, r, Options{}, "a", "b", "c")
		return nil
	})
	stop, wg := make(chan struct{}), sync.WaitGroup{}
	for _, name := range []Name{"a", "b", "c"} {
		wg.Go(func() {
			for {
				if got := lent(t, l, name); got != "Bearer value-of-"+string(name) {
					t.Error(got)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 3 {
		id, err := vault.Advance(t.Context(), seal.Source{})
		must(t, err)
		use(func(r *seal.Keyring) error {
			n, err := s.Rewrap(t.Context(), r)
			if n != 3 {
				t.Errorf("rewrapped %d", n)
			}
			return err
		})
		gone, err := vault.Prune(t.Context(), func() (map[seal.KeyID]int, error) { return s.KeysInUse(t.Context()) })
		if err != nil || len(gone) != 1 || gone[0] == id {
			t.Errorf("%v, %v", gone, err)
		}
	}
	close(stop)
	wg.Wait()
	use(func(r *seal.Keyring) error {
		masks, err := s.Masks(t.Context(), r, "b")
		if masks[Value] != "••••of-b" && len("value-of-b") >= 12 {
			t.Error(masks)
		}
		return err
	})
}

// TestWrongKeyWritesNothing: whoever has not the key changes nothing.
func TestWrongKeyWritesNothing(t *testing.T) {
	s, ring := testStore(t)
	must(t, s.Add(ring, staticMeta("one"), Material{Value: text("first-value-abcd")}))
	before, wrong := fileOf(t, s, "one"), seal.NewKeyring(seal.NewKey())
	for name, err := range map[string]error{
		"rotate": s.Rotate(t.Context(), wrong, "one", Material{Value: text("second")}),
		"rewrap": func() error { _, err := s.Rewrap(t.Context(), wrong); return err }(),
		"masks":  func() error { _, err := s.Masks(t.Context(), wrong, "one"); return err }(),
		"open":   func() error { _, err := s.Open(t.Context(), wrong, Options{}, "one"); return err }(),
		"add":    s.Add(new(seal.Keyring), staticMeta("two"), Material{Value: text("x")}),
	} {
		if err == nil || name != "add" && (fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), ring.Current().String()) || !strings.Contains(fault.HintOf(err), "seal status")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if fileOf(t, s, "one") != before {
		t.Error("the file was changed")
	}
	if names, _ := s.Names(); len(names) != 1 {
		t.Error(names)
	}
	must(t, s.Rotate(t.Context(), ring, "one", Material{Value: text("second-value")})) // the twin
}

// rewrite changes a record as somebody could who can write the file and has no key.
func rewrite(t *testing.T, s *Store, name Name, change func(*record)) {
	t.Helper()
	r, _, err := s.load(t.Context(), name)
	must(t, err)
	change(&r)
	content, err := r.encode()
	must(t, err)
	data, err := encodeSlot(9, content)
	must(t, err)
	must(t, os.WriteFile(s.path(name), data, 0o600))
}

func TestTampering(t *testing.T) {
	basicMeta := func(name Name) Meta {
		m := staticMeta(name)
		m.Kind, m.User = OAuth2Refresh, ""
		m.OAuth = &OAuthSettings{TokenURL: "https://example.com/token", ClientID: "c"}
		return m
	}
	about := func(old, replacement string) func(*testing.T, *Store, *record) {
		return func(t *testing.T, _ *Store, r *record) {
			changed := strings.Replace(string(r.About), old, replacement, 1)
			if changed == string(r.About) {
				t.Fatalf("%s has no %s", r.About, old)
			}
			r.About = json.RawMessage(changed)
		}
	}
	other := func(t *testing.T, s *Store) record {
		r, _, err := s.load(t.Context(), "two")
		must(t, err)
		return r
	}
	for name, change := range map[string]func(*testing.T, *Store, *record){
		"":              func(*testing.T, *Store, *record) {},
		"wider host":    about(`"example.com"`, `"evil.example.net"`),
		"another port":  about(`443`, `80`),
		"endpoint":      about(`https://example.com/token`, `https://evil.example.net/token`),
		"no path limit": about(`,"paths":["/a/","/b\u0026c/"]`, ``),
		"swapped fields": func(_ *testing.T, _ *Store, r *record) {
			r.Fields[RefreshToken], r.Fields[ClientSecret] = r.Fields[ClientSecret], r.Fields[RefreshToken]
		},
		"a field dropped and renamed": func(_ *testing.T, _ *Store, r *record) {
			r.Fields = map[Field][]byte{RefreshToken: r.Fields[ClientSecret]}
		},
		"field of another record":    func(t *testing.T, s *Store, r *record) { r.Fields[RefreshToken] = other(t, s).Fields[RefreshToken] },
		"data key of another record": func(t *testing.T, s *Store, r *record) { r.DataKey = other(t, s).DataKey },
		"id of another record":       func(t *testing.T, s *Store, r *record) { r.ID = other(t, s).ID },
		"key and fields of another":  func(t *testing.T, s *Store, r *record) { o := other(t, s); r.DataKey, r.Fields = o.DataKey, o.Fields },
		"version":                    func(_ *testing.T, _ *Store, r *record) { r.Version++ },
		"a bit of a field":           func(_ *testing.T, _ *Store, r *record) { r.Fields[RefreshToken][20] ^= 1 },
		"a bit of the data key":      func(_ *testing.T, _ *Store, r *record) { r.DataKey.Data[20] ^= 1 },
		"name":                       about(`"name":"one"`, `"name":"two"`),
		"format":                     func(_ *testing.T, _ *Store, r *record) { r.Format = 2 },
		"unknown member":             about(`{"name"`, `{"x":1,"name"`),
	} {
		t.Run(name, func(t *testing.T) {
			s, ring := testStore(t)
			for _, n := range []Name{"one", "two"} {
				m := basicMeta(n)
				m.Scope.Paths = []string{"/a/", "/b&c/"} // an ampersand is where encoders of JSON differ
				must(t, s.Add(ring, m, Material{RefreshToken: text("refresh-" + string(n)), ClientSecret: text("client-" + string(n))}))
			}
			rewrite(t, s, "one", func(r *record) { change(t, s, r) })
			l, err := s.Open(t.Context(), ring, Options{}, "one")
			if name == "" {
				must(t, err)
				must(t, l.Close())
				return
			}
			if kind := fault.KindOf(err); kind != fault.Conflict && kind != fault.Unsupported {
				t.Errorf("opened: %v", err)
			}
		})
	}
	t.Run("swapped files", func(t *testing.T) {
		s, ring := testStore(t)
		must(t, s.Add(ring, staticMeta("one"), Material{Value: text("value-of-one")}))
		must(t, s.Add(ring, staticMeta("two"), Material{Value: text("value-of-two")}))
		must(t, os.Rename(s.path("two"), s.path("one")))
		if _, err := s.Open(t.Context(), ring, Options{}, "one"); fault.KindOf(err) != fault.Conflict {
			t.Error(err)
		}
		if list, err := s.List(t.Context()); err == nil || len(list) != 0 {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func TestStoreRefuses(t *testing.T) {
	s, ring := testStore(t)
	for name, change := range map[string]func(*Meta, Material){
		"no host":        func(m *Meta, _ Material) { m.Scope.Hosts = nil },
		"any host":       func(m *Meta, _ Material) { m.Scope.Hosts = []string{"*"} },
		"an address":     func(m *Meta, _ Material) { m.Scope.Hosts = []string{"192.0.2.1"} },
		"path with ..":   func(m *Meta, _ Material) { m.Scope.Paths = []string{"/a/../b"} },
		"method":         func(m *Meta, _ Material) { m.Scope.Methods = []string{"get"} },
		"kind":           func(m *Meta, _ Material) { m.Kind = "" },
		"name":           func(m *Meta, _ Material) { m.Name = "../one" },
		"header Host":    func(m *Meta, _ Material) { m.Header = "host" },
		"header break":   func(m *Meta, _ Material) { m.Header = "X-A\r\nB" },
		"prefix break":   func(m *Meta, _ Material) { m.Prefix = "Bearer\r\nX: " },
		"user and colon": func(m *Meta, _ Material) { m.User = "a:b" },
		"shape":          func(m *Meta, _ Material) { m.Shape = "bogus" },
		"no value":       func(_ *Meta, v Material) { delete(v, Value) },
		"empty value":    func(_ *Meta, v Material) { v[Value] = text("") },
		"line break":     func(_ *Meta, v Material) { v[Value] = text("a\r\nX-Evil: b") },
		"two lines":      func(_ *Meta, v Material) { v[Value] = text("a\n") },
		"not ASCII":      func(_ *Meta, v Material) { v[Value] = text("päss") },
		"too long":       func(_ *Meta, v Material) { v[Value] = text(strings.Repeat("x", maxSecret+1)) },
		"other field":    func(_ *Meta, v Material) { v[Password] = text("x") },
		"basic, no user": func(m *Meta, v Material) { m.Kind = Basic; delete(v, Value); v[Password] = text("x") },
		"settings":       func(m *Meta, _ Material) { m.AWS = &AWSSettings{AccessKeyID: "AKIAIOSFODNN7EXAMPLE"} },
	} {
		m, v := staticMeta("one"), Material{Value: text("value")}
		change(&m, v)
		if err := s.Add(ring, m, v); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	for _, endpoint := range []string{"", "http://example.com/t", "https://u:p@example.com/t", "https://192.0.2.1/t", "https://example.com:0/t", "https://example.com/t#f", "ftp://example.com", "https:example.com"} {
		m := staticMeta("one")
		m.Kind, m.OAuth = OAuth2Client, &OAuthSettings{TokenURL: endpoint, ClientID: "c"}
		if err := s.Add(ring, m, Material{ClientSecret: text("x")}); fault.KindOf(err) != fault.Invalid || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
	must(t, os.Chmod(s.dir, 0o750))
	if _, err := OpenStore(s.dir); fault.KindOf(err) != fault.Denied {
		t.Error(err)
	}
	must(t, os.Chmod(s.dir, 0o700))
	must(t, s.Add(ring, staticMeta("one"), Material{Value: text("value")}))
	must(t, os.Chmod(s.path("one"), 0o604))
	if _, err := s.Get(t.Context(), "one"); fault.KindOf(err) != fault.Denied {
		t.Error(err)
	}
	must(t, os.Remove(s.path("one")))
	must(t, os.Symlink("/etc/passwd", s.path("one")))
	if _, err := s.Get(t.Context(), "one"); err == nil {
		t.Error("followed a link")
	}
}

// TestSlotsSurvive cuts and corrupts a file at every stage of a change: what is read is the old content or the new, never a mixture and never nothing.
func TestSlotsSurvive(t *testing.T) {
	older, err := encodeSlot(4, []byte("old content"))
	must(t, err)
	newer, err := encodeSlot(5, []byte("the new content"))
	must(t, err)
	path := filepath.Join(t.TempDir(), "f")
	for cut := range len(newer) + 1 {
		for _, fill := range []byte{0, 0xff, 'a'} {
			data := make([]byte, slotSize+len(newer))
			copy(data, older)
			copy(data[slotSize:], newer[:cut])
			for i := slotSize + cut; i < len(data); i++ {
				data[i] = fill
			}
			must(t, os.WriteFile(path, data, 0o600))
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			s := &slots{file: f}
			got, _, err := s.read(t.Context())
			want := "old content"
			if cut == len(newer) {
				want = "the new content"
			}
			if err != nil || string(got) != want {
				t.Fatalf("cut at %d: %q, %v", cut, got, err)
			}
			must(t, s.update(t.Context(), func(c []byte) ([]byte, error) { return append(c, '!'), nil }))
			if got, _, err = s.read(t.Context()); err != nil || string(got) != want+"!" {
				t.Fatalf("cut at %d, updated: %q, %v", cut, got, err)
			}
			must(t, f.Close())
		}
	}
	// After a change nothing of the old content is left in the file.
	if data, _ := os.ReadFile(path); strings.Contains(string(data), "old content") {
		t.Error("the old content is still there")
	}
	must(t, os.WriteFile(path, []byte("neither empty nor a slot"), 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	s := &slots{file: f}
	if _, _, err := s.read(t.Context()); fault.KindOf(err) != fault.Conflict {
		t.Error(err)
	}
	stop := errors.New("stop")
	before, _ := os.ReadFile(path)
	if err := s.update(t.Context(), func([]byte) ([]byte, error) { return nil, stop }); err == nil {
		t.Error("updated what was damaged")
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Error("wrote")
	}
}

// FuzzDecodeSlot: what is accepted is exactly what would be written.
func FuzzDecodeSlot(f *testing.F) {
	good, _ := encodeSlot(1, []byte("x"))
	f.Add(good)
	f.Add(make([]byte, headLen))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, content, ok := decodeSlot(data)
		if !ok {
			return
		}
		again, err := encodeSlot(n, content)
		if err != nil || string(again) != string(data[:len(again)]) {
			t.Fatalf("%d %q %v", n, content, err)
		}
	})
}

// FuzzDecodeRecord: what is read of a file is a valid description, under its own name.
func FuzzDecodeRecord(f *testing.F) {
	ring := seal.NewKeyring(seal.NewKey())
	m, err := Normalised(staticMeta("one"))
	must(f, err)
	r, err := newRecord(ring, m, Material{Value: text("value")})
	must(f, err)
	data, err := r.encode()
	must(f, err)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		_, m, err := decodeRecord("one", data)
		if err == nil && (m.Name != "one" || m.check() != nil) {
			t.Fatalf("%+v", m)
		}
	})
}

func TestWatch(t *testing.T) {
	s, ring := testStore(t)
	must(t, s.Add(ring, staticMeta("one"), Material{Value: text("value-1")}))
	must(t, s.Add(ring, staticMeta("two"), Material{Value: text("value-2")}))
	l := open(t, s, ring, Options{}, "one", "two")
	gone, done := make(chan Name, 9), make(chan struct{})
	ctx := t.Context()
	go func() {
		defer close(done)
		_ = l.Watch(ctx, func(n Name) { gone <- n })
	}()
	must(t, s.Rotate(t.Context(), ring, "two", Material{Value: text("value-3")}))
	must(t, s.Remove(t.Context(), "one"))
	select {
	case n := <-gone:
		if n != "one" {
			t.Error(n)
		}
	case <-time.After(5 * time.Second):
		t.Error("not noticed")
	}
	time.Sleep(2 * watchEvery)
	if len(gone) > 0 {
		t.Errorf("told of %s", <-gone)
	}
}

func BenchmarkLend(b *testing.B) {
	s, ring := testStore(b)
	must(b, s.Add(ring, staticMeta("one"), Material{Value: text("value-1")}))
	l := open(b, s, ring, Options{}, "one")
	for b.Loop() {
		if _, err := l.Lend(b.Context(), "one", request()); err != nil {
			b.Fatal(err)
		}
	}
}
