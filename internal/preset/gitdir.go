package preset

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// gitConfigFile finds the configuration of the workspace's repository. The repository is not asked to do it: git runs programs that a repository's
// configuration names. A folder above may belong to anybody, so it is not looked at. "" means that what is there is not trusted, and a note says why:
// a workspace that could point elsewhere would choose which of the user's other repositories is read, and its hosts would be allowed.
func (b *builder) gitConfigFile(ctx context.Context) (string, error) {
	dotGit := filepath.Join(b.host.Dir, ".git")
	if _, err := os.Lstat(dotGit); errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.NotFound, "@git: %s is not the top folder of a git repository", b.host.Dir).
			WithHint("run it in the repository's top folder, or name the host with --allow HOST instead of --allow @git")
	}
	work, err := filepath.EvalSymlinks(b.host.Dir)
	if err != nil {
		return "", b.unsupported(err, "%s cannot be read", b.host.Dir)
	}
	if !b.gitOwned(dotGit) {
		return "", nil
	}
	gitDir, err := b.gitDir(work, dotGit)
	if err != nil || !b.gitOwned(gitDir) {
		return "", err
	}
	common, err := b.gitCommonDir(gitDir)
	if err != nil || !b.gitOwned(common) {
		return "", err
	}
	config := filepath.Join(common, "config")
	if !b.gitPlainFile(config) {
		return "", nil
	}
	if !(within(work, gitDir) && within(work, common)) && !b.pointsBack(ctx, gitDir, work) {
		b.note("%s points at %s, which lies outside of the workspace and does not belong to it: nothing is allowed; name the host with --allow HOST", dotGit, common)
		return "", nil
	}
	return config, nil
}

// gitDir returns the directory that .git is or, in a work tree or submodule, names. All of its path is resolved.
func (b *builder) gitDir(work, dotGit string) (string, error) {
	info, err := os.Stat(dotGit)
	if err != nil {
		return "", b.unsupported(err, "%s cannot be read", dotGit)
	}
	dir := dotGit
	if !info.IsDir() {
		text, err := b.host.read(dotGit)
		if err != nil {
			return "", b.unsupported(err, "%s cannot be read", dotGit)
		}
		target, ok := strings.CutPrefix(strings.TrimSpace(text), "gitdir:")
		if !ok {
			return "", b.unsupported(nil, "%s is not understood", dotGit)
		}
		dir = absolute(work, strings.TrimSpace(target))
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", b.unsupported(err, "%s names a directory that cannot be read", dotGit)
	}
	return real, nil
}

// gitCommonDir returns the directory with the configuration: that of the main repository, for a work tree.
func (b *builder) gitCommonDir(gitDir string) (string, error) {
	text, err := b.host.read(filepath.Join(gitDir, "commondir"))
	if err != nil {
		return "", b.unsupported(err, "%s cannot be read", filepath.Join(gitDir, "commondir"))
	}
	if text = strings.TrimSpace(text); text == "" {
		return gitDir, nil
	}
	common, err := filepath.EvalSymlinks(absolute(gitDir, text))
	if err != nil {
		return "", b.unsupported(err, "%s names a directory that cannot be read", filepath.Join(gitDir, "commondir"))
	}
	return common, nil
}

// pointsBack says whether a git directory outside of the workspace is meant for it: a work tree's names the tree's .git file, a submodule's the tree.
// The workspace cannot write there, so it cannot claim one that is another's; a git directory inside says whatever the workspace likes.
func (b *builder) pointsBack(ctx context.Context, gitDir, work string) bool {
	if within(work, gitDir) {
		return false
	}
	if text, err := b.host.read(filepath.Join(gitDir, "gitdir")); err == nil && strings.TrimSpace(text) != "" {
		dotGit := absolute(gitDir, strings.TrimSpace(text))
		tree, err := filepath.EvalSymlinks(filepath.Dir(dotGit))
		return err == nil && filepath.Base(dotGit) == ".git" && tree == work
	}
	out, err := b.host.run(ctx, "git", "config", "--null", "--file", filepath.Join(gitDir, "config"), "--get", "core.worktree")
	named := strings.TrimSuffix(string(out), "\x00")
	if err != nil || named == "" {
		return false
	}
	tree, err := filepath.EvalSymlinks(absolute(gitDir, named))
	return err == nil && tree == work
}

// gitPlainFile accepts a configuration that is a file in its place and trusted: a symlink would lead to another repository's.
func (b *builder) gitPlainFile(config string) bool {
	info, err := os.Lstat(config)
	if err == nil && !info.Mode().IsRegular() {
		b.note("%s is no plain file: nothing is allowed; name the host with --allow HOST", config)
		return false
	}
	return b.gitOwned(config)
}

// gitOwned accepts what belongs to the user or to root, as git does (safe.directory). A note says what does not. What does not exist holds nothing.
func (b *builder) gitOwned(path string) bool {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	owner := "somebody else"
	if err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			if st.Uid == 0 || int(st.Uid) == os.Geteuid() {
				return true
			}
			owner = "user " + strconv.Itoa(int(st.Uid))
		}
	}
	b.note("%s belongs to %s, neither to you nor to root: nothing is allowed for its remotes; name the host with --allow HOST", path, owner)
	return false
}

// within says whether a resolved path lies in a resolved directory, or is it.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}
