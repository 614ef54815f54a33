package build

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestPackages builds a small image from this distribution's packages, twice, and looks at what it holds without running any of it.
func TestPackages(t *testing.T) {
	testenv.Need(t, "network", "tool:apt-get", "tool:dpkg-deb")
	temp := t.TempDir()
	// It is entered by the user that apt-get fetches as.
	for dir := temp; dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := Recipe{Packages: []string{"base-files", "base-passwd", "libc-bin", "dash", "coreutils", "mawk", "ca-certificates"}, Exclude: []string{"/usr/share/man", "/usr/share/locale"}}
	var layers [][]byte
	for range 2 {
		b, err := FromPackages(t.Context(), r, Options{Temp: temp})
		if fault.KindOf(err) == fault.NotFound {
			b, err = FromPackages(t.Context(), r, Options{Temp: temp, Refresh: true}) // a machine without package lists
		}
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layerOf(t, b))
		t.Logf("%d packages, %+v", len(b.Packages), b.Counts)
		look(t, b)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(layers[0], layers[1]) {
		t.Error("two builds differ")
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Error("left behind:", left, err)
	}
}

// look checks that the image can work: every program finds its loader and its libraries in the tree, nothing is set-id, the records are there.
func look(t *testing.T, b *Built) {
	t.Helper()
	l := b.layer
	programs := 0
	for _, name := range l.names() {
		n := l.nodes[name]
		if n.mode&0o6000 != 0 {
			t.Errorf("%s has mode %o", name, n.mode)
		}
		if n.kind != file || n.mode&0o111 == 0 || n.data.size < 4 {
			continue
		}
		data, err := l.read(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
			continue
		}
		programs++
		lookAtProgram(t, l, name, data)
	}
	if programs < 50 {
		t.Errorf("only %d programs", programs)
	}
	if n := b.Counts.Bytes; n < 10<<20 || n > 120<<20 {
		t.Errorf("the image has %d bytes", n)
	}
	for _, name := range []string{"bin/sh", "usr/bin/awk", "etc/ssl/certs/ca-certificates.crt", "etc/os-release", "etc/nsswitch.conf", "etc/passwd", "var/lib/dpkg/status"} {
		if _, n := l.find(name); n == nil || n.kind != file {
			t.Errorf("%s is missing", name)
		}
	}
	if !slices.ContainsFunc(b.Packages, func(p Package) bool { return p.Name == "libc6" && len(p.SHA256) == 64 && p.Version != "" }) {
		t.Errorf("%+v", b.Packages)
	}
	again, kind, err := l.database()
	if err != nil || kind != "dpkg" || len(again) != len(b.Packages) {
		t.Error("its own records name", len(again), kind, err)
	}
}

func lookAtProgram(t *testing.T, l *layer, name string, data []byte) {
	t.Helper()
	e, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, segment := range e.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		loader, err := io.ReadAll(segment.Open())
		if err != nil {
			t.Fatal(err)
		}
		if _, n := l.find(strings.Trim(string(loader), "\x00/")); n == nil || n.kind != file {
			t.Errorf("%s: its loader %q is missing", name, loader)
		}
	}
	libraries, err := e.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, library := range libraries {
		places := []string{path.Dir(name), "usr/lib", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"}
		if !slices.ContainsFunc(places, func(dir string) bool { _, n := l.find(path.Join(dir, library)); return n != nil && n.kind == file }) {
			t.Errorf("%s: its library %s is missing", name, library)
		}
	}
}

func TestPackagesRefused(t *testing.T) {
	testenv.Need(t, "tool:apt-get", "tool:dpkg-deb")
	temp := t.TempDir()
	if _, err := FromPackages(t.Context(), Recipe{Packages: []string{"no-such-package-at-all"}}, Options{Temp: temp}); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // in the middle of resolving
	defer cancel()
	if _, err := FromPackages(ctx, Recipe{Packages: []string{"bash"}}, Options{Temp: temp}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Error("left behind:", left, err)
	}
}

func TestWithoutApt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := FromPackages(t.Context(), Recipe{Packages: []string{"bash"}}, Options{Temp: t.TempDir()}); fault.KindOf(err) != fault.Unsupported || fault.HintOf(err) == "" {
		t.Error(err)
	}
}
