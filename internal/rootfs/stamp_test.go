package rootfs

import (
	"os"
	"path/filepath"
	"testing"
)

// TestStamp makes, changes and removes what a view would have to leave out: each time the stamp is another.
func TestStamp(t *testing.T) {
	dir := t.TempDir()
	hidden := []Hidden{{Path: filepath.Join(dir, "key*")}, {Path: filepath.Join(dir, "below", "secret")}}
	name := filepath.Join(dir, "key1")
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"a file appears", func() error { return os.WriteFile(name, nil, 0o600) }},
		{"a link takes its place", func() error { return os.Symlink("elsewhere", name+".new") }},
		{"which is moved over it", func() error { return os.Rename(name+".new", name) }},
		{"it goes", func() error { return os.Remove(name) }},
		{"a directory appears", func() error { return os.Mkdir(filepath.Join(dir, "below"), 0o755) }},
		{"and something in it", func() error { return os.WriteFile(filepath.Join(dir, "below", "secret"), nil, 0o600) }},
	} {
		stamp, err := Stamp(hidden)
		if err != nil {
			t.Fatal(err)
		}
		if !Same(stamp, hidden) {
			t.Errorf("before %s: the stamp is wrong at once", step.what)
		}
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if Same(stamp, hidden) {
			t.Errorf("%s: not noticed", step.what)
		}
	}
}
