package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// gitTask is what a client does with a Git repository, by git itself.
type gitTask struct {
	Do         string `json:"do"`                   // clone, push: everything, once; fetch, commits: little, as often as Count says
	URL        string `json:"url"`                  // of the repository
	Repository string `json:"repository,omitempty"` // push: what is pushed
	Trust      string `json:"trust,omitempty"`      // file with the authority to trust
	Dir        string `json:"dir,omitempty"`        // where clones go; empty: the temporary directory
	Count      int    `json:"count,omitempty"`
}

// gitTime bounds one call of git.
const gitTime = 5 * time.Minute

// carryOut returns milliseconds for each call of git that counts.
func (t gitTask) carryOut() ([]float64, error) {
	dir, err := os.MkdirTemp(t.Dir, "bench-git-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	switch t.Do {
	case "clone":
		return t.clone(filepath.Join(dir, "clone"))
	case "fetch":
		return t.fetches(dir)
	case "push":
		took, err := t.git(t.Repository, "-c", "pack.useBitmaps=false", "push", "-q", t.URL, "main:refs/heads/main") // people's repositories have no bitmaps
		return []float64{took}, err
	case "commits":
		return t.commits(dir)
	}
	return nil, fmt.Errorf("no such task of git: %q", t.Do)
}

func (t gitTask) clone(dir string) ([]float64, error) {
	took, err := t.git(filepath.Dir(dir), "clone", "-q", "--bare", t.URL, dir)
	if err != nil {
		return nil, err
	}
	_, err = t.git(dir, "rev-parse", "-q", "--verify", "main^{tree}")
	return []float64{took}, err
}

// fetches asks again and again for what is there already.
func (t gitTask) fetches(dir string) (values []float64, err error) {
	if _, err := t.git(dir, "clone", "-q", "--bare", t.URL, dir); err != nil {
		return nil, err
	}
	for range t.Count {
		took, err := t.git(dir, "fetch", "-q", t.URL, "main")
		if err != nil {
			return nil, err
		}
		values = append(values, took)
	}
	return values, nil
}

// commits pushes one commit after the other, each with one small change.
func (t gitTask) commits(dir string) (values []float64, err error) {
	if _, err := t.git(dir, "clone", "-q", t.URL, dir); err != nil {
		return nil, err
	}
	for i := range t.Count {
		if err := os.WriteFile(filepath.Join(dir, "note.txt"), fmt.Appendf(nil, "%d at %d\n", i, time.Now().UnixNano()), 0o600); err != nil {
			return nil, err
		}
		if _, err := t.git(dir, "add", "note.txt"); err != nil {
			return nil, err
		}
		if _, err := t.git(dir, "commit", "-q", "-m", "note"); err != nil {
			return nil, err
		}
		took, err := t.git(dir, "push", "-q", "origin", "main")
		if err != nil {
			return nil, err
		}
		values = append(values, took)
	}
	return values, nil
}

// git runs git in a folder.
func (t gitTask) git(dir string, args ...string) (took float64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), gitTime)
	defer cancel()
	settings := []string{"-c", "safe.directory=*", "-c", "gc.auto=0", "-c", "user.name=Bench", "-c", "user.email=bench@example.com"}
	cmd := exec.CommandContext(ctx, "git", append(settings, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GIT_TERMINAL_PROMPT=0")
	if t.Trust != "" {
		cmd.Env = append(cmd.Env, "GIT_SSL_CAINFO="+t.Trust)
	}
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took = milliseconds(time.Since(began))
	if err != nil {
		return 0, errors.New("git " + strings.Join(args[:min(3, len(args))], " ") + ": " + err.Error() + ": " + strings.ReplaceAll(string(out[:min(len(out), 500)]), "\n", " "))
	}
	return took, nil
}
