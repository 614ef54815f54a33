package workspace

import (
	"fmt"
	"path"
	"strings"
	"testing"
)

// TestDangerousPaths: the table, dangerous and harmless side by side. Each path is a new file.
func TestDangerousPaths(t *testing.T) {
	for _, tt := range []struct {
		path      Name
		dangerous bool
	}{
		{".git/hooks/pre-commit", true}, {".git/config", true}, {".git/config.worktree", true}, {".git/info/attributes", true},
		{".git/modules/lib/hooks/post-checkout", true}, {".git/modules/lib/objects/aa/bb", true}, {".git/rebase-merge/git-rebase-todo", true},
		{".git/objects/info/alternates", true}, {".git/new-thing", true}, {".GIT/hooks/x", true}, {".git ./hooks/x", true}, {"git~1/hooks/x", true},
		{".g\u200cit/hooks/x", true}, {".git:stream/hooks/x", true}, {"sub/.git/config", true},
		{".git/objects/ab/cdef", false}, {".git/refs/heads/main", false}, {".git/logs/HEAD", false}, {".git/index", false}, {".git/COMMIT_EDITMSG", false},
		{".gitignore", false}, {".gitattributes", false}, {"git/hooks/x", false}, {".gitx/hooks/x", false}, {"docs/.gitkeep", false},
		{".gitmodules", true}, {".husky/pre-commit", true}, {"sub/.husky/_/x", true}, {".githooks/x", true}, {".pre-commit-config.yaml", true}, {"lefthook.yml", true},
		{".github/workflows/ci.yml", true}, {".GitHub/Workflows/CI.yml", true}, {".github/actions/x/action.yml", true}, {".github/ISSUE_TEMPLATE.md", false},
		{"node_modules/p/.github/workflows/ci.yml", false}, {"node_modules/p/.travis.yml", false}, {".travis.yml", true}, {"sub/.travis.yml", true},
		{".gitlab-ci.yml", true}, {".circleci/config.yml", true}, {"Jenkinsfile", true}, {"Jenkinsfile.deploy", true}, {".woodpecker.yml", true}, {".woodpecker/x.yml", true},
		{".drone.yml", true}, {"azure-pipelines.yml", true}, {"azure-pipelines-pr.yaml", true}, {"bitbucket-pipelines.yml", true}, {".forgejo/workflows/x", true}, {".gitea/workflows/x", true},
		{".claude/settings.json", true}, {"node_modules/p/.claude/settings.json", true}, {"CLAUDE.md", true}, {"sub/claude.md", true}, {"CLAUDE.local.md", true},
		{"AGENTS.md", true}, {"agents.go", false}, {"docs/about-agents.md", false}, {".mcp.json", true}, {".cursor/rules/x", true}, {".cursorrules", true},
		{".windsurfrules", true}, {".codex/config.toml", true}, {".gemini/settings.json", true}, {".aider.conf.yml", true}, {".continue/config.json", true},
		{".vscode/settings.json", true}, {".vscode/tasks.json", true}, {".vscode/c_cpp_properties.json", true}, {".vscode/snippets.code-snippets", true}, {"vscode/x", false}, {".idea/workspace.xml", true},
		{"x.code-workspace", true}, {".vimrc", true}, {".exrc", true}, {".nvimrc", true}, {".dir-locals.el", true}, {".editorconfig", false},
		{".envrc", true}, {"sub/.envrc", true}, {".env", true}, {".env.local", true}, {".env.example", false}, {"environment", false}, {".direnv/x", true},
		{"mise.toml", true}, {".mise.toml", true}, {".tool-versions", false}, {".npmrc", true}, {".yarnrc.yml", true}, {".yarn/releases/yarn.cjs", true},
		{".yarn/cache/x.zip", false}, {".pnp.cjs", true}, {"node_modules/.pnpm/x", false}, {".bunfig.toml", true}, {"pip.conf", true},
		{".cargo/config", true}, {".cargo/config.toml", true}, {".cargo/registry/x", false}, {".bazelrc", true}, {"Makefile", false}, {"package.json", false},
		{"rust-toolchain", true}, {"sub/rust-toolchain.toml", true}, {"rust-toolchain.md", false}, {".Rprofile", true}, {".Renviron", true}, {"renv.lock", false},
		{".irbrc", true}, {".pryrc", true}, {".ghci", true}, {"x.ghci", false}, {".iex.exs", true}, {"mix.exs", false}, {".pdbrc", true}, {".pdbrc.py", true}, {".ocamlinit", true},
		{".bundle/config", true}, {".bundle/cache/x", false}, {".bazeliskrc", true}, {"tools/bazel", true}, {"tools/bazel.bat", true}, {"tools/bazel.md", false}, {"bazel", false},
		{".buckconfig", true}, {".buckconfig.local", true}, {".buckversion", false}, {".jupyter/jupyter_notebook_config.py", true}, {"jupyter/x", false},
		{"cofferdam.yaml", true}, {".ssh/authorized_keys", true}, {".bashrc", true}, {"src/main.go", false}, {".hg/hgrc", true},
		{".cla\u017fude/x", false}, {"\u212astuff", false}, {"AGENT\u017f.md", true}, // long s is a lower-case s to some
	} {
		list := []Change{{Path: tt.path, Now: fileNode(0o644)}}
		judge(list, "", nil)
		if d := list[0].Danger; (d.Rule != "") != tt.dangerous || (d.Reason != "") != tt.dangerous {
			t.Errorf("%s: danger %v, want %t", tt.path, d, tt.dangerous)
		}
	}
}

// checkPattern accepts the patterns that the table may hold: relative, no empty or dot components, ** only at the end.
func checkPattern(text string) error {
	p := parsePattern(text)
	if len(p.parts) == 0 {
		return fmt.Errorf("pattern %.80q matches everything", text)
	}
	for _, one := range p.parts {
		part := one.text
		if part == "" || part == "." || part == ".." || strings.Contains(part, "**") {
			return fmt.Errorf("pattern %.80q: write names, with * inside a name, separated by /; ** only as the last", text)
		}
		if _, err := path.Match(part, "x"); err != nil {
			return fmt.Errorf("pattern %.80q: %w", text, err)
		}
	}
	return nil
}

func TestRulesAreValid(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rules() {
		if err := checkPattern(r.pattern); err != nil || r.reason == "" || seen[r.pattern] || strings.ToLower(r.pattern) != r.pattern {
			t.Errorf("rule %q: %v", r.pattern, err)
		}
		seen[r.pattern] = true
	}
	for pattern, ok := range map[string]bool{
		"a": true, "a/b/**": true, "*.md": true, "": false, "/a": false, "a/../b": false, "**/a": false, "a/**/b": false, "a//b": false, "[": false, ".": false,
	} {
		if err := checkPattern(pattern); (err == nil) != ok {
			t.Errorf("pattern %q: %v, want ok %t", pattern, err, ok)
		}
	}
}

// TestDangerInContext: what depends on kind, on other changes and on the workspace. The expected text lists what is set apart.
func TestDangerInContext(t *testing.T) {
	repo := spec{".git/HEAD": "file 0644 ref", ".git/config": "file 0644 [core]\n", ".git/objects": "dir", ".git/refs": "dir"}
	for _, tt := range []struct {
		name         string
		lower, upper spec
		want         string
	}{
		{"commit", repo, spec{".git/objects/aa/b": "file 0444 x", ".git/refs/heads/main": "file 0644 x", ".git/index": "file 0644 x", "f": "file 0644 x"}, ""},
		{"new repository", repo, spec{"sub/.git/HEAD": "file 0644 x", "sub/.git/objects/aa": "file 0644 x", "sub/f": "file 0644 x"}, "sub/.git sub/.git/HEAD sub/.git/objects sub/.git/objects/aa"},
		{"first repository", spec{}, spec{".git/HEAD": "file 0644 x", ".git/refs/x": "file 0644 x"}, ".git .git/HEAD .git/refs .git/refs/x"},
		{"git file", repo, spec{"sub/.git": "file 0644 gitdir: ../x"}, "sub/.git"},
		{"git symlink", repo, spec{"sub/.git": "-> ../x"}, "sub/.git"},
		{"repository removed", repo, spec{".git": "whiteout"}, ".git .git/HEAD .git/config .git/objects .git/refs"},
		{"head removed", repo, spec{".git/HEAD": "whiteout", ".git/refs/x": "file 0644 x"}, ".git/HEAD .git/refs/x"},
		{"head is a symlink", repo, spec{".git/HEAD": "-> ../x"}, ".git/HEAD"},
		{"objects is a symlink", repo, spec{".git/objects": "-> ../x"}, ".git/objects"},
		{"bare repository", repo, spec{"x/HEAD": "file 0644 r", "x/config": "file 0644 c", "x/objects": "dir", "x/refs": "dir", "y/HEAD": "file 0644 not one"},
			"x x/HEAD x/config x/objects x/refs"},
		{"bare repository completed", spec{"x/HEAD": "file 0644 r", "x/objects": "dir", "x/refs": "dir"}, spec{"x/config": "file 0644 c", "x/hooks/pre-push": "file 0755 c"}, "x/config x/hooks x/hooks/pre-push"},
		{"bare by commondir", spec{}, spec{"x/HEAD": "file 0644 r", "x/commondir": "file 0644 c"}, "x x/HEAD x/commondir"},
		{"repository hidden among refs", repo, spec{".git/refs/x/HEAD": "file 0644 r", ".git/refs/x/objects": "dir", ".git/refs/x/refs": "dir", ".git/refs/x/config": "file 0644 c"},
			".git/refs/x .git/refs/x/HEAD .git/refs/x/config .git/refs/x/objects .git/refs/x/refs"},
		{"folder by symlink", spec{}, spec{".github": "-> ci", "ci/workflows/x.yml": "file 0644 x"}, ".github"},
		{"dot vscode by symlink", spec{}, spec{".vscode": "-> editor", ".cargo": "-> c", "plain": "-> c"}, ".cargo .vscode"},
		{"symlinks", spec{}, spec{"a/ok": "-> ../b/c", "a/up": "-> ../../x", "a/abs": "-> /etc/passwd", "a/vague": "-> b/../../c", "top": "-> ..", "in": "-> ./a//b", "self": "-> ."}, "a/abs a/up a/vague top"},
		{"symlink to a guarded place", repo, spec{"a/h": "-> ../.git/hooks", "b": "-> .git/config"}, "a/h b"},
		{"hooks elsewhere", spec{".git/config": "file 0644 [core]\n\thooksPath = tools/hooks\n[include]\n\tpath = ../shared.cfg\n", ".git/HEAD": "file 0644 x"},
			spec{"tools/hooks/pre-commit": "file 0755 x", "tools/other": "file 0644 x", "shared.cfg": "file 0644 x"}, "shared.cfg tools/hooks tools/hooks/pre-commit"},
		{"behind an existing symlink", spec{"CLAUDE.md": "-> docs/agent.md", ".github/workflows": "-> ../ci", "docs/agent.md": "file 0644 a"},
			spec{"docs/agent.md": "file 0644 b", "docs/other.md": "file 0644 b", "ci/x.yml": "file 0644 x"}, "ci ci/x.yml docs/agent.md"},
		{"new dangerous folder", spec{}, spec{".aider.cache.v4/deep/f": "file 0644 x"}, ".aider.cache.v4 .aider.cache.v4/deep .aider.cache.v4/deep/f"},
		{"deleted guard", spec{"CLAUDE.md": "file 0644 x", ".git/hooks/pre-push": "file 0755 x", "f": "file 0644 x"}, spec{"CLAUDE.md": "whiteout", ".git/hooks": "whiteout", "f": "whiteout"}, ".git/hooks .git/hooks/pre-push CLAUDE.md"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := collect(t, tt.lower, tt.upper)
			var apart []Change
			for _, change := range c.List() {
				if change.Danger.Rule != "" {
					apart = append(apart, change)
				}
			}
			if got := paths(apart); got != tt.want {
				t.Errorf("set apart: %s\nwant:      %s", got, tt.want)
			}
			apply(t, c, ApplyOptions{})
			for path := range snapshot(t, c.ws) {
				for _, a := range apart {
					if a.Op() == Add && string(a.Path) == path {
						t.Errorf("%s was applied", path)
					}
				}
			}
		})
	}
}

// TestUnprotected: policy names paths; each stands for itself and what is in it, and for nothing else.
func TestUnprotected(t *testing.T) {
	list := []Change{
		{Path: ".claude", Now: Node{Kind: Dir}}, {Path: ".claude/settings.json", Now: fileNode(0)},
		{Path: ".github", Now: Node{Kind: Dir}}, {Path: ".github/workflows", Now: Node{Kind: Dir}}, {Path: ".github/workflows/ci.yml", Now: fileNode(0)},
		{Path: ".github/workflows/other.yml", Now: fileNode(0)}, {Path: "AGENTS.md", Now: fileNode(0)}, {Path: "sub/.claude/settings.json", Now: fileNode(0)},
	}
	judge(list, "", []string{".github/workflows/ci.yml", ".claude", "", "agents.md"})
	var apart strings.Builder
	for _, c := range list {
		if c.Danger.Rule != "" {
			apart.WriteString(c.Path.String() + " ")
		}
	}
	if want := ".github/workflows .github/workflows/other.yml AGENTS.md sub/.claude/settings.json "; apart.String() != want {
		t.Errorf("set apart %s\nwant      %s", apart.String(), want)
	}
}

// TestProtected: what a launcher has to mount over a workspace that can be written directly.
func TestProtected(t *testing.T) {
	dir := t.TempDir()
	spec{
		".git/HEAD": "file 0644 x", ".git/config": "file 0644 x", ".git/hooks/a": "file 0755 x", ".git/objects/aa/b": "file 0444 x", ".git/info/exclude": "file 0644 x",
		".github/workflows/ci.yml": "file 0644 x", ".vscode/settings.json": "file 0644 x", "sub/p/.git/config": "file 0644 x", "sub/p/f": "file 0644 x",
		"AGENTS.md": "-> docs/a.md", "CLAUDE.md": "file 0644 x", "src/f.go": "file 0644 x", "node_modules/m/.npmrc": "file 0644 x",
	}.build(t, dir)
	g, err := Protected(dir, []string{".vscode"})
	must(t, err)
	join := func(names []Name) string { return strings.Trim(fmt.Sprint(names), "[]") }
	if got, want := join(g.ReadOnly), ".git/config .git/hooks .git/info .github/workflows CLAUDE.md sub/p/.git/config"; got != want {
		t.Errorf("read-only %s\nwant      %s", got, want)
	}
	if got, want := join(g.Pins), ".git .github sub sub/p sub/p/.git"; got != want {
		t.Errorf("pins %s\nwant %s", got, want)
	}
	if join(g.Open) != "AGENTS.md" || g.Partial {
		t.Errorf("open %v, partial %t", g.Open, g.Partial)
	}
	missing := " " + join(g.Missing) + " "
	for name, want := range map[string]bool{".envrc": true, ".git/config.worktree": true, ".git/hooks": false, "claude.md": false, ".vscode/tasks.json": false, ".mcp.json": true} {
		if strings.Contains(missing, " "+name+" ") != want {
			t.Errorf("missing lists %s: %t, want %t", name, !want, want)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	var list []Change
	for i := range 100_000 {
		list = append(list, Change{Path: Name(fmt.Sprintf("node_modules/package-%d/lib/internal/file-%d.js", i/100, i)), Now: fileNode(0o644)})
	}
	for b.Loop() {
		judge(list, "", nil)
	}
}
