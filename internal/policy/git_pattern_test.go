package policy

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestCheckRef holds names of refs to git's own judgement, for names made of what its rules are about.
func TestCheckRef(t *testing.T) {
	testenv.Need(t, "tool:git")
	pieces := []string{"a", "B", "/", "/", ".", "..", ".lock", "@", "{", "@{", " ", "~", "^", ":", "?", "*", "[", "\\", "-", "\x01", "\x7f", "é", "lock", "refs", "heads"}
	random := rand.New(rand.NewPCG(1, 2))
	names := []string{"refs/heads/@", "refs/heads/-", "refs/heads/a.", "refs/heads/.a", "refs/heads/a.lock/b", "refs/heads/a.lock", "refs/heads/a/", "refs/heads//a", "refs/heads/a..b", "refs/heads/é"}
	for range 600 {
		var b strings.Builder
		b.WriteString("refs/heads/")
		for range 1 + random.IntN(4) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		names = append(names, b.String())
	}
	accepted := 0
	for _, name := range names {
		git := exec.Command("git", "check-ref-format", name).Run() == nil
		if got := checkRef(name) == nil; got != git {
			t.Errorf("%q: %v, git says %v", name, got, git)
		}
		if git {
			accepted++
		}
	}
	if accepted < 50 || accepted > len(names)-50 {
		t.Errorf("git takes %d names of %d: the test tells nothing", accepted, len(names))
	}
}

func TestPatterns(t *testing.T) {
	for pattern, cases := range map[string]map[string]bool{
		"a/**":      {"a/x": true, "a/x/y": true, "a": false, "b/x": false, "ab/x": false},
		"**":        {"x": true, "x/y/z": true},
		"*":         {"x": true, "x/y": false},
		"a/**/b":    {"a/b": true, "a/x/b": true, "a/x/y/b": true, "a/b/x": false, "a/bb": false, "a/b/b": true},
		"**/b":      {"b": true, "x/b": true, "x/y/b": true, "b/x": false},
		"**/a/**/b": {"a/b": true, "x/a/y/b": true, "a/a/b/b": true, "b/a": false, "a/x": false},
		"a*c":       {"ac": true, "abc": true, "abcbc": true, "ab": false, "xabc": false, "a/c": false},
		"a*b*c":     {"abc": true, "axbxc": true, "acb": false, "abcabc": true},
		"v*":        {"v": true, "v1": true, "1v": false},
		"*-x":       {"-x": true, "a-x": true, "a-x-x": true, "a-xy": false},
	} {
		p := newPattern(pattern)
		for name, want := range cases {
			if got := matchSegments(p.segments, strings.Split(name, "/")); got != want {
				t.Errorf("%s and %s: %v, want %v", pattern, name, got, want)
			}
			if other := inOtherWords(strings.Join([]string{"r", pattern}, "/")).MatchString("r/" + name); other != want {
				t.Errorf("%s and %s in other words: %v, want %v", pattern, name, other, want)
			}
		}
	}
}

// TestPatternsAreBounded gives patterns that make a naive matcher try every way.
func TestPatternsAreBounded(t *testing.T) {
	start := time.Now()
	p := newPattern(strings.Repeat("**/a*a*a*a*b/", 30) + "x")
	name := strings.Split(strings.Repeat(strings.Repeat("a", 60)+"/", 200)+"y", "/")
	if p.likeness(name, name) != unlike {
		t.Error("it matches")
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestProtected(t *testing.T) {
	p := newProtection([]string{".github/workflows/", "AGENTS.md", "**/CLAUDE.md", "docs/api/*.yml", "ci-*", "**/.vscode/tasks.json", "**/*.secret"})
	for path, want := range map[string]bool{
		".github/workflows/ci.yml": true, ".github/workflows/a/b": true, ".github/workflows": true, ".github": true, // a file or link in the place of the folder
		".github/workflowsx": false, ".github/other/ci.yml": false, "x/.github/workflows/ci.yml": false, ".github/CODEOWNERS": false,
		".GitHub/Workflows/CI.yml": true, ".github /workflows./ci.yml": true, ".git\u200chub/workflows/ci.yml": true, ".github:x/workflows/y": true, `.github\workflows\ci.yml`: true, ".github/Workflow\u017f/x": true,
		".githab/workflows/ci.yml": false, "github/workflows/ci.yml": false,
		"AGENTS.md": true, "agents.MD": true, "AGENTS.md/x": true, "x/AGENTS.md": false, "AGENTS.mdx": false, "AGENTS.md.": true, "AGENTS": false,
		"CLAUDE.md": true, "a/b/claude.md": true, "a/CLAUDE.md/x": true, "CLAUDE.mdx": false, "a/xCLAUDE.md": false,
		"docs/api/x.yml": true, "docs/api/x/y.yml": false, "docs/api/x.yaml": false, "docs": true, "docs/api": true, "docs/x": false, "x/docs/api/x.yml": false,
		"ci-1": true, "ci-1/x": true, "ci": false, "x/ci-1": false,
		".vscode/tasks.json": true, "a/.vscode/tasks.json": true, "a/.vscode/settings.json": false, "a/.vscode": false,
		"a.secret": true, "a/b/c.Secret": true, "secret": false,
		"": false, "/": false, "README.md": false, "\xff\xfe": false, strings.Repeat("a/", 10000): false,
	} {
		if got := p.protects(path); got != want {
			t.Errorf("%.60q: %v, want %v", path, got, want)
		}
	}
	anchored := newProtection([]string{".github/workflows/", "docs/api/*.yml", "AGENTS.md"})
	for dir, want := range map[string]bool{
		"": true, ".github": true, ".GITHUB": true, ".github/workflows": true, ".github/workflows/a/b": true, ".github/other": false, "docs": true, "docs/api": true, "docs/x": false, "src": false, "x/.github": false, "AGENTS.md": true,
	} {
		if got := anchored.protectsBelow(dir); got != want {
			t.Errorf("below %q: %v, want %v", dir, got, want)
		}
		if !p.protectsBelow(dir) {
			t.Errorf("below %q: patterns for any depth are forgotten", dir)
		}
	}
	if newProtection(nil).protectsBelow("") {
		t.Error("nothing is protected, and yet something below the root")
	}
}

func TestDefaultProtectedFiles(t *testing.T) {
	var texts []string
	for _, f := range DefaultProtectedFiles() {
		if _, err := checkProtected(f.Pattern); err != nil || f.Reason == "" || slices.Contains(texts, f.Pattern) {
			t.Errorf("%+v: %v", f, err)
		}
		texts = append(texts, f.Pattern)
	}
	p := newProtection(texts)
	for _, path := range []string{".github/workflows/ci.yml", ".gitlab-ci.yml", ".forgejo/workflows/x", "Jenkinsfile", "build/Jenkinsfile.release", "AGENTS.md", "a/b/CLAUDE.local.md", ".claude/settings.json", "x/.cursor/rules/a.mdc",
		"CODEOWNERS", ".github/CODEOWNERS", ".husky/pre-commit", ".pre-commit-config.yaml", "lefthook.yml", ".vscode/tasks.json", ".envrc", ".mcp.json", "cofferdam.yaml", ".github/copilot-instructions.md", "azure-pipelines.yml"} {
		if !p.protects(path) {
			t.Errorf("%s is not protected", path)
		}
	}
	for _, path := range []string{"README.md", "src/main.go", "package.json", "Makefile", ".gitignore", ".github/ISSUE_TEMPLATE.md", "docs/index.md", ".gitmodules", "claude.go", "docs/agents.go"} {
		if p.protects(path) {
			t.Errorf("%s is protected", path)
		}
	}
}

// FuzzProtected holds that what protects a path is known of every folder above it, that letter case makes no difference, and that the index finds
// what going through the patterns one by one finds.
func FuzzProtected(f *testing.F) {
	f.Add(".github/workflows/\n**/CLAUDE.md\na*/b", "a/b/c")
	f.Add("x/y/z/\n**/a/b*", "A/B")
	f.Fuzz(func(t *testing.T, patterns, path string) {
		var texts []string
		for text := range strings.SplitSeq(patterns, "\n") {
			if checked, err := checkProtected(text); err == nil && len(texts) < maxProtected {
				texts = append(texts, checked)
			}
		}
		if path == "" || strings.Contains(path, `\`) || !utf8.ValidString(path) {
			return
		}
		p := newProtection(texts)
		got, want := p.protects(path), false
		for _, text := range texts {
			want = want || newProtection([]string{text}).protects(path)
		}
		if got != want {
			t.Fatalf("%q: %v together, %v one by one", path, got, want)
		}
		if folded := strings.Join(foldPath(path), "/"); p.protects(folded) != got {
			t.Fatalf("%q: %v, but %q: %v", path, got, folded, !got)
		}
		for i := range path {
			if path[i] == '/' && got && !p.protectsBelow(path[:i]) && !p.protects(path[:i]) {
				t.Fatalf("%q is protected, and %q is said to hold nothing", path, path[:i])
			}
		}
	})
}

func BenchmarkProtected(b *testing.B) {
	var texts []string
	for _, f := range DefaultProtectedFiles() {
		texts = append(texts, f.Pattern)
	}
	p := newProtection(texts)
	for b.Loop() {
		p.protects("internal/gateway/plainhttp/testdata/request.txt")
	}
}

func TestShowName(t *testing.T) {
	for in, want := range map[string]string{
		"main": "main", "a/b": "a/b", "größe": "größe", "": `""`, "a b": `"a b"`, "a\nb": `"a\nb"`, "\x1b[2J": `"\x1b[2J"`, "\u202ex": `"\u202ex"`, "a\xff": `"a\xff"`, `a"b`: `"a\"b"`, "a\u00a0b": `"a\u00a0b"`,
	} {
		if got := showName(in); got != want {
			t.Errorf("%q is shown as %s, want %s", in, got, want)
		}
	}
	if got := showName(strings.Repeat("x", 100000)); len(got) > 200 {
		t.Errorf("a long name is shown with %d bytes", len(got))
	}
	if got := fmt.Sprint(showRef("refs/heads/a"), " ", showRef("refs/tags/a"), " ", showRef("refs/x/a")); got != "a tag a refs/x/a" {
		t.Error(got)
	}
}
