package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

func TestOrderOfLibraries(t *testing.T) {
	ordered := []string{"ld-linux.so.2", "libc.so.6", "libcap.so.2", "libfoo.so", "libfoo.so.2", "libfoo.so.10", "libfoo.so.10.1", "libz.so.1", "libzstd.so.1"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := compareLibraries(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s, %s: %d", a, b, got)
			}
		}
	}
}

// TestCacheIsGlibcs has glibc's own tool read what is written here.
func TestCacheIsGlibcs(t *testing.T) {
	testenv.Need(t, "tool:ldconfig")
	name := filepath.Join(t.TempDir(), "cache")
	all := []library{{"libz.so.1", "/lib/libz.so.1"}, {"libc.so.6", "/lib/libc.so.6"}, {"libfoo.so.10", "/usr/lib/libfoo.so.10"}, {"libfoo.so.2", "/usr/lib/libfoo.so.2"}}
	if err := os.WriteFile(name, encodeCache(slices.Clone(all), 0x0303), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ldconfig", "-p", "-C", name).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "4 libs found") {
		t.Fatalf("%v: %s", err, out)
	}
	for _, one := range all {
		if !strings.Contains(string(out), one.name+" (libc6,x86-64) => "+one.path+"\n") {
			t.Errorf("%s lacks %s", out, one.name)
		}
	}
}
