package credential

import (
	"math"
	"regexp"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/ident"
)

func TestShapes(t *testing.T) {
	like := map[Shape]string{
		Generic: `^cfd_[A-Za-z0-9]{40}$`, GitHub: `^ghp_[A-Za-z0-9]{36}$`, GitHubFine: `^github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}$`, GitHubToken: `^ghs_[A-Za-z0-9]{36}$`,
		GitLab: `^glpat-[A-Za-z0-9_-]{20,}(\.[A-Za-z0-9]+)*$`, NPM: `^npm_[A-Za-z0-9]{36}$`, PyPI: `^pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{70,}$`, Anthropic: `^sk-ant-api03-[A-Za-z0-9_-]{93}AA$`,
		OpenAI: `^sk-proj-[A-Za-z0-9_-]{74}$`, Slack: `^xoxb-[0-9]{10,13}-[0-9]{10,13}-[A-Za-z0-9]{24}$`, AWSKey: `^AKIA[A-Z2-7]{16}$`,
	}
	p := NewPlaceholders(ident.NewRun())
	for _, shape := range Shapes() {
		one, err := p.Issue(Meta{Name: "x", Shape: shape})
		must(t, err)
		if like[shape] == "" || !regexp.MustCompile(like[shape]).MatchString(one.Value) {
			t.Errorf("%s: %s", shape, one.Value)
		}
		if (one.Secret != "") != (shape == AWSKey) || shape == AWSKey && len(one.Secret) != 40 {
			t.Errorf("%s: %q", shape, one.Secret)
		}
	}
	if _, err := p.Issue(Meta{Name: "x", Shape: "bogus"}); err == nil {
		t.Error("an unknown shape")
	}
	for _, f := range forms() {
		bits := 0.0
		for _, piece := range f.pieces {
			if piece.alphabet != "" {
				bits += float64(piece.n) * math.Log2(float64(len(piece.alphabet)))
			}
		}
		if bits < 128 && f.shape != AWSKey {
			t.Errorf("%s carries %.0f bits", f.shape, bits)
		}
	}
}

func TestShapeOf(t *testing.T) {
	for value, want := range map[string]Shape{
		"ghp_x": GitHub, "github_pat_x": GitHubFine, "ghs_x": GitHubToken, "glpat-x": GitLab, "npm_x": NPM, "pypi-x": PyPI, "sk-ant-api03-x": Anthropic, "sk-proj-x": OpenAI, "xoxb-1": Slack,
		"anything": Generic, "": Generic,
	} {
		if got := shapeOf(Meta{Kind: Static}, Material{Value: text(value)}); got != want {
			t.Errorf("%s: %s", value, got)
		}
	}
	if shapeOf(Meta{Kind: AWS}, nil) != AWSKey || shapeOf(Meta{Kind: GitHubApp}, nil) != GitHubToken || shapeOf(Meta{Kind: OAuth2Client}, nil) != Generic {
		t.Error("by kind")
	}
}

func TestPlaceholders(t *testing.T) {
	one, two := NewPlaceholders("aaaaaaaa"), NewPlaceholders("bbbbbbbb")
	a, err := one.Issue(Meta{Name: "github", Shape: GitHub})
	must(t, err)
	b, err := one.Issue(Meta{Name: "bucket", Shape: AWSKey})
	must(t, err)
	c, err := two.Issue(Meta{Name: "github", Shape: GitHub})
	must(t, err)
	if a.Value == c.Value {
		t.Error("two runs have the same")
	}
	for token, want := range map[string]Name{
		a.Value: "github", b.Value: "bucket", b.Secret: "bucket", c.Value: "", "": "", a.Value[:len(a.Value)-1]: "", a.Value + "x": "", strings.ToUpper(a.Value): "", strings.Repeat("x", 1000): "",
	} {
		if got, ok := one.Find(token); got.Credential != want || ok != (want != "") {
			t.Errorf("%q: %+v", token, got)
		}
	}
	if got, ok := one.In([]byte("?token=" + a.Value + "&x")); !ok || got.Credential != "github" {
		t.Error("not found in a text")
	}
	if got, ok := one.In([]byte("secret: " + b.Secret)); !ok || got.Credential != "bucket" {
		t.Error("not found in a text")
	}
	if _, ok := one.In([]byte("nothing " + c.Value)); ok {
		t.Error("found another run's")
	}
	if all := one.All(); len(all) != 2 || all[0].Credential != "bucket" {
		t.Error(all)
	}
	again, err := one.Issue(Meta{Name: "github", Shape: GitHub})
	if err != nil || again.Value == a.Value {
		t.Error("the same twice")
	}
}
