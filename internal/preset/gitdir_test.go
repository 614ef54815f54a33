package preset

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// place is a file of a test, or a symlink if it begins with "-> ". $ROOT stands for the test's directory.
type place map[string]string

func (p place) build(t *testing.T, root string) {
	t.Helper()
	for path, text := range p {
		full, text := filepath.Join(root, path), strings.ReplaceAll(text, "$ROOT", root)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		if target, link := strings.CutPrefix(text, "-> "); link {
			err = errors.Join(err, os.Symlink(target, full))
		} else {
			err = errors.Join(err, os.WriteFile(full, []byte(text), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestGitTrustsOnlyItsOwnRepository: the workspace cannot point at the configuration of somebody else's repository, nor of another one of the user's.
func TestGitTrustsOnlyItsOwnRepository(t *testing.T) {
	const remote = "[remote \"o\"]\n\turl = https://git.example.com/a\n"
	allowed := []string{"git.example.com:443"}
	other := place{"other/.git/HEAD": "x", "other/.git/config": remote, "other/.git/worktrees/w/commondir": "../..\n", "other/.git/worktrees/w/gitdir": "$ROOT/elsewhere/.git\n"}
	for name, c := range map[string]struct {
		files place
		chown string // given to somebody else
		want  []string
		note  string
		fault fault.Kind
	}{
		"its own":                    {files: place{"tree/.git/config": remote}, want: allowed},
		"worktree":                   {files: place{"tree/.git": "gitdir: ../other/.git/worktrees/t", "other/.git/worktrees/t/commondir": "../..", "other/.git/worktrees/t/gitdir": "$ROOT/tree/.git\n"}, want: allowed},
		"worktree, relative":         {files: place{"tree/.git": "gitdir: ../other/.git/worktrees/t", "other/.git/worktrees/t/commondir": "../..", "other/.git/worktrees/t/gitdir": "../../../../tree/.git\n"}, want: allowed},
		"submodule":                  {files: place{"tree/.git": "gitdir: ../other/.git/modules/t", "other/.git/modules/t/config": "[core]\n\tworktree = ../../../../tree\n" + remote}, want: allowed},
		"separate, inside":           {files: place{"tree/.git": "gitdir: meta", "tree/meta/config": remote}, want: allowed},
		"symlink, inside":            {files: place{"tree/.git": "-> meta", "tree/meta/config": remote}, want: allowed},
		"another repository":         {files: place{"tree/.git": "gitdir: $ROOT/other/.git"}, note: "points at"},
		"another, by a symlink":      {files: place{"tree/.git": "-> ../other/.git"}, note: "points at"},
		"another's worktree":         {files: place{"tree/.git": "gitdir: $ROOT/other/.git/worktrees/w"}, note: "points at"},
		"another's .git file":        {files: place{"tree/.git": "-> ../elsewhere/.git", "elsewhere/.git": "gitdir: $ROOT/other/.git/worktrees/w"}, note: "points at"},
		"another's submodule":        {files: place{"tree/.git": "gitdir: ../other/.git/modules/s", "other/.git/modules/s/config": "[core]\n\tworktree = ../../../s\n" + remote}, note: "points at"},
		"common directory":           {files: place{"tree/.git": "gitdir: meta", "tree/meta/commondir": "$ROOT/other/.git"}, note: "points at"},
		"configuration is a symlink": {files: place{"tree/.git/config": "-> ../../other/.git/config"}, note: "no plain file"},
		"directory is a symlink":     {files: place{"tree/.git": "gitdir: sub/.git", "tree/sub": "-> ../other"}, note: "points at"},
		"somebody else's":            {files: place{"tree/.git/config": remote}, chown: "tree/.git", note: "belongs to"},
		"somebody else's config":     {files: place{"tree/.git/config": remote}, chown: "tree/.git/config", note: "belongs to"},
		"somebody else's .git file":  {files: place{"tree/.git": "gitdir: meta", "tree/meta/config": remote}, chown: "tree/.git", note: "belongs to"},
		"somebody else's link":       {files: place{"tree/.git": "-> meta", "tree/meta/config": remote}, chown: "tree/.git", note: "belongs to"},
		"somebody else's separate":   {files: place{"tree/.git": "gitdir: meta", "tree/meta/config": remote}, chown: "tree/meta", note: "belongs to"},
		"in the folder above":        {files: place{".git/config": remote}, fault: fault.NotFound},
		"dangling":                   {files: place{"tree/.git": "gitdir: nowhere"}, fault: fault.Unsupported},
		"a loop":                     {files: place{"tree/.git": "-> .git"}, fault: fault.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			h := realGit(t, "", "", "")
			h.Dir = filepath.Join(h.Root, "tree")
			if err := os.Mkdir(h.Dir, 0o755); err != nil {
				t.Fatal(err)
			}
			other.build(t, h.Root)
			c.files.build(t, h.Root)
			if c.chown != "" {
				if os.Geteuid() != 0 {
					t.Skip("needs root")
				}
				if err := os.Lchown(filepath.Join(h.Root, c.chown), 1234, 1234); err != nil {
					t.Fatal(err)
				}
			}
			p, err := Resolve(t.Context(), "@git", h)
			if fault.KindOf(err) != c.fault || err != nil && fault.HintOf(err) == "" {
				t.Fatalf("error %v (%v), want %v and a hint", err, fault.KindOf(err), c.fault)
			}
			checkSafe(t, p)
			if d := cmp.Diff(c.want, p.Allows); d != "" {
				t.Errorf("allows -want +got\n%s", d)
			}
			if notes := strings.Join(p.Notes, "\n"); c.note == "" && notes != "" || !strings.Contains(notes, c.note) {
				t.Errorf("notes %q, want %q", notes, c.note)
			}
		})
	}
}
