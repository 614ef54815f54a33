package preset

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// realGit is a host with the real git, which reads only the settings that a test writes.
func realGit(t *testing.T, local, global, system string) Host {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	h := host(t, map[string]string{"work/.git/config": local, "home/.gitconfig": global, "etc/gitconfig": system}, nil, nil)
	h.Run = runTool
	t.Setenv("HOME", h.Home)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(h.Home, ".config"))
	t.Setenv("GIT_CONFIG_SYSTEM", filepath.Join(h.Root, "etc/gitconfig"))
	return h
}

func TestGit(t *testing.T) {
	for name, c := range map[string]struct {
		local, global, system string
		want                  Preset
	}{
		"https and http": {
			local: "[remote \"origin\"]\n\turl = https://git.example.com/a/b.git\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n[remote \"Mirror.two\"]\n\turl = http://git.example.org:8080/a\n",
			want:  Preset{Allows: []string{"git.example.com:443", "git.example.org:8080"}}},
		"credentials": {
			local: "[remote \"origin\"]\n\turl = https://me:s3cret@git.example.com/a\n",
			want:  Preset{Allows: []string{"git.example.com:443"}, Notes: []string{"the remote origin has a user or password in its address"}}},
		"ssh": {
			local: "[remote \"origin\"]\n\turl = git@git.example.com:team/a.git\n[remote \"b\"]\n\turl = ssh://git@ssh.example.com:2222/b.git\n[remote \"c\"]\n\turl = ../elsewhere\n[remote \"d\"]\n\turl = git://old.example.com/d\n",
			want: Preset{Notes: []string{"--allow git.example.com:443 and git remote set-url origin https://git.example.com/team/a.git", "git remote set-url b https://ssh.example.com/b.git",
				"the remote c is a path", `the remote d uses "git"`}}},
		"rewritten by the user": {
			local:  "[remote \"origin\"]\n\turl = git@git.example.com:team/a.git\n",
			global: "[url \"https://u:s3cret@mirror.example.com/\"]\n\tinsteadOf = git@git.example.com:\n\tinsteadOf = git@\n",
			want: Preset{Allows: []string{"mirror.example.com:443"},
				Env: []string{"GIT_CONFIG_KEY_0=url.https://mirror.example.com/.insteadOf", "GIT_CONFIG_VALUE_0=git@git.example.com:",
					"GIT_CONFIG_KEY_1=url.https://mirror.example.com/.insteadOf", "GIT_CONFIG_VALUE_1=git@", "GIT_CONFIG_COUNT=2"},
				Notes: []string{"the remote origin has a user", "git rewrites addresses to mirror.example.com:443 with a user or password"}}},
		"rewritten to ssh by the user: not inside": {
			local:  "[remote \"origin\"]\n\turl = https://git.example.com/a.git\n",
			global: "[url \"git@git.example.com:\"]\n\tinsteadOf = https://git.example.com/\n",
			want:   Preset{Allows: []string{"git.example.com:443"}}},
		"rewritten by the machine": {
			local:  "[remote \"origin\"]\n\turl = https://git.example.com/a.git\n",
			system: "[url \"https://mirror.example.com/git/\"]\n\tinsteadOf = https://git.example.com/\n",
			want:   Preset{Allows: []string{"mirror.example.com:443"}}},
		"push elsewhere": {
			local: "[remote \"a\"]\n\turl = https://fetch.example.com/a\n\tpushurl = https://push.example.com/a\n[remote \"b\"]\n\turl = https://fetch.example.com/b\n[url \"https://push2.example.com/\"]\n\tpushInsteadOf = https://fetch.example.com/\n",
			want:  Preset{Allows: []string{"fetch.example.com:443", "push.example.com:443", "push2.example.com:443"}}},
		"proxy and header": {
			local:  "[remote \"origin\"]\n\turl = https://git.example.com/a\n",
			global: "[http]\n\tproxy = http://proxy.example.com:3128\n[http \"https://git.example.com\"]\n\textraHeader = Authorization: s3cret\n",
			want:   Preset{Allows: []string{"git.example.com:443"}, Notes: []string{"web proxy proxy.example.com:3128", "extra header"}}},
		"no remotes": {local: "[core]\n\tbare = false\n", want: Preset{Notes: []string{"no remotes"}}},
		"hostile": {
			local: "[include]\n\tpath = /dev/zero\n[core]\n\tfsmonitor = touch /tmp/owned\n[remote \"\x1b]0;x\"]\n\turl = https://*.example.com/\n[remote \"e\"]\n\turl = ext::sh -c id\n",
			want:  Preset{Notes: []string{"the remote \\x1b]0;x is an address without a valid host", "the remote e"}}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Resolve(t.Context(), "@git", realGit(t, c.local, c.global, c.system))
			if err != nil {
				t.Fatal(err)
			}
			checkSafe(t, p)
			if d := cmp.Diff(c.want.Allows, p.Allows) + cmp.Diff(c.want.Env, p.Env); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
			if len(p.Notes) != len(c.want.Notes) {
				t.Fatalf("notes %q, want %q", p.Notes, c.want.Notes)
			}
			for i, n := range p.Notes {
				if !strings.Contains(n, c.want.Notes[i]) {
					t.Errorf("note %q, want %q", n, c.want.Notes[i])
				}
			}
		})
	}
}

func TestGitFindsTheRepository(t *testing.T) {
	h := realGit(t, "[remote \"o\"]\n\turl = https://git.example.com/a\n", "", "")
	below := h
	below.Dir = filepath.Join(h.Dir, "a", "b")
	linked := h
	linked.Dir = filepath.Join(h.Root, "tree")
	outside := h
	outside.Dir = filepath.Join(h.Root, "home")
	strange := h
	strange.Dir = filepath.Join(h.Root, "strange")
	for path, text := range map[string]string{
		filepath.Join(below.Dir, "x"):                         "",
		filepath.Join(linked.Dir, ".git"):                     "gitdir: ../work/.git/worktrees/tree\n",
		filepath.Join(h.Dir, ".git/worktrees/tree/commondir"): "../..\n",
		filepath.Join(h.Dir, ".git/worktrees/tree/gitdir"):    filepath.Join(linked.Dir, ".git") + "\n",
		filepath.Join(strange.Dir, ".git"):                    "what is this",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []Host{h, linked} {
		if p, err := Resolve(t.Context(), "@git", h); err != nil || len(p.Allows) != 1 {
			t.Errorf("%s: %+v %v", h.Dir, p, err)
		}
	}
	for _, h := range []Host{outside, below} { // what lies above the workspace may be anybody's
		if _, err := Resolve(t.Context(), "@git", h); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%s: outside of a repository: %v", h.Dir, err)
		}
	}
	if _, err := Resolve(t.Context(), "@git", strange); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("strange .git: %v", err)
	}
}
