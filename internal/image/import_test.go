package image

import (
	"archive/tar"
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestImport(t *testing.T) {
	s := open(t)
	o := ImportOptions{Config: Config{Env: []string{"LANG=C.UTF-8"}, WorkingDir: "/work", Cmd: []string{"bash"}}, SBOM: []byte(`{"packages":[]}`), Created: time.Unix(1_700_000_000, 0)}
	first, err := s.Import(t.Context(), "default", bytes.NewReader(base(t)), o)
	if err != nil {
		t.Fatal(err)
	}
	if first.Source != "" || len(first.Names) != 1 || first.Names[0] != "default:latest" || first.Config.Cmd[0] != "bash" {
		t.Errorf("%+v", first)
	}
	if data, err := os.ReadFile(first.SBOM); err != nil || string(data) != `{"packages":[]}` {
		t.Errorf("%q, %v", data, err)
	}
	other := open(t)
	again, err := other.Import(t.Context(), "team/other:2", bytes.NewReader(base(t)), o)
	if err != nil || again.Digest != first.Digest {
		t.Errorf("the same has the digest %s, then %s: %v", first.Digest, again.Digest, err)
	}
	for _, ref := range []string{"default", "default:latest", first.Digest, first.Digest[7:15]} {
		if i, err := s.Find(ref); err != nil || i.Digest != first.Digest {
			t.Errorf("%s: %v", ref, err)
		}
	}
	before := snapshot(t, s.dir)
	for name, c := range map[string]struct {
		ref   string
		layer []byte
		o     ImportOptions
		says  string
	}{
		"registry":     {"registry.example.org/x", base(t), o, "names a registry"},
		"digest":       {"x@" + first.Digest, base(t), o, "names a registry"},
		"escape":       {"x", archive(t, entry{name: "../x", content: "x"}), o, "leads upwards"},
		"compressed":   {"x", gzipped(base(t)), o, "damaged"},
		"preload":      {"x", base(t), ImportOptions{Config: Config{Env: []string{"LD_PRELOAD=/x"}}}, "LD_PRELOAD"},
		"device":       {"x", archive(t, entry{name: "x", kind: 'Z'}), o, "layers do not have"},
		"no directory": {"x", archive(t, entry{name: "x", kind: tar.TypeLink, link: "y"}), o, "hard link"},
	} {
		if _, err := s.Import(t.Context(), c.ref, bytes.NewReader(c.layer), c.o); err == nil || !strings.Contains(err.Error(), c.says) || fault.KindOf(err) == fault.Internal {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
	same(t, "store", snapshot(t, s.dir), before)
	if err := s.Remove("default"); err != nil {
		t.Error(err)
	}
}

func TestParseReference(t *testing.T) {
	const hex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, c := range []struct{ text, want string }{
		{"default", "default:latest"}, {"team/tool:1.2", "team/tool:1.2"}, {"registry.example.org/a/b__c-d.e:V1_x", "registry.example.org/a/b__c-d.e:V1_x"},
		{"registry.example.org:5000/a", "registry.example.org:5000/a:latest"}, {"registry.example.org:443/a", "registry.example.org/a:latest"}, {"localhost/a", "localhost/a:latest"},
		{"registry.example.org/a@sha256:" + hex, "registry.example.org/a@sha256:" + hex}, {"registry.example.org/a:1@sha256:" + hex, "registry.example.org/a@sha256:" + hex},
		{"", ""}, {"A", ""}, {"a/", ""}, {"/a", ""}, {"a//b", ""}, {"a:", ""}, {"a:-x", ""}, {"a:b c", ""}, {"a..b", ""}, {"-a", ""}, {"a-", ""}, {"a___b", ""}, {"../a", ""},
		{"a@sha256:12", ""}, {"a@md5:" + hex, ""}, {"a@sha256:" + strings.ToUpper(hex), ""}, {"10.0.0.1/a", ""}, {"[::1]:5000/a", ""}, {"registry.example.org:0/a", ""},
		{"registry.example.org:99999/a", ""}, {"REGISTRY.example.org/a", ""}, {"a:b:c", ""}, {"a\nb", ""}, {"a%2fb", ""}, {strings.Repeat("a", 256), ""},
		{"user@registry.example.org/a", ""}, {"https://registry.example.org/a", ""},
	} {
		r, err := ParseReference(c.text)
		if c.want == "" {
			if err == nil || fault.HintOf(err) == "" {
				t.Errorf("%q is %q, %v (%s)", c.text, r, err, fault.HintOf(err))
			}
			continue
		}
		if err != nil || r.String() != c.want {
			t.Errorf("%q is %q, %v; want %q", c.text, r, err, c.want)
		}
		if again, err := ParseReference(r.String()); err != nil || again != r {
			t.Errorf("%q read again is %v, %v", r, again, err)
		}
	}
}

// FuzzParseReference holds that what is taken is canonical: it reads back as itself.
func FuzzParseReference(f *testing.F) {
	f.Add("registry.example.org:5000/a/b:1")
	f.Add("a__b--c.d@sha256:" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseReference(text)
		if err != nil {
			return
		}
		if again, err := ParseReference(r.String()); err != nil || again != r || strings.ContainsAny(r.String(), " \n\x00%?#\\") || strings.Contains(r.String(), "..") {
			t.Errorf("%q is %q, which reads back as %q, %v", text, r, again, err)
		}
	})
}

func TestParseChallenge(t *testing.T) {
	for _, c := range []struct{ line, scheme, realm string }{
		{`Bearer realm="https://a.example/t",service="s"`, "bearer", "https://a.example/t"}, {`bearer  realm=x , scope="a b,c"`, "bearer", "x"}, {"Basic", "basic", ""},
		{`Bearer realm="x`, "", ""}, {`Bearer realm="a\"b"`, "", ""}, {`Basic realm="a", Bearer realm="b"`, "", ""}, {"Bearer " + strings.Repeat("a=b,", 2000), "", ""},
	} {
		got, ok := parseChallenge(c.line)
		if ok != (c.scheme != "") || ok && (got.scheme != c.scheme || got.params["realm"] != c.realm) {
			t.Errorf("%.60q: %+v, %v", c.line, got, ok)
		}
	}
}
