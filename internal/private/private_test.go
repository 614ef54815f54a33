package private

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestDir(t *testing.T) {
	at := t.TempDir()
	own := filepath.Join(at, "a", "b")
	for range 2 { // made, and there
		if err := Dir(own); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(own); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	link := filepath.Join(at, "link")
	if err := os.Symlink(own, link); err != nil {
		t.Fatal(err)
	}
	if err := Dir(link); fault.KindOf(err) != fault.Denied {
		t.Errorf("a link: %v", err)
	}
	if err := os.Chmod(own, 0o710); err != nil {
		t.Fatal(err)
	}
	if err := Dir(own); fault.KindOf(err) != fault.Denied || fault.HintOf(err) == "" {
		t.Errorf("open to others: %v", err)
	}
	file := filepath.Join(at, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Dir(filepath.Join(file, "x")); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("below a file: %v", err)
	}
}
