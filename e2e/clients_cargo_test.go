package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestCargo builds a crate whose dependency lies in a registry that the user's configuration names, as a company's would be.
func TestCargo(t *testing.T) {
	testenv.Need(t, "tool:cargo", "tool:cc")
	crate := newCrate(t)
	forEachUser(t, func(t *testing.T, h *house) {
		toolchain := rustToolchain(t)
		t.Setenv("PATH", toolchain+"/bin:"+os.Getenv("PATH"))
		if out, err := h.tool(t.Context(), "/", toolchain+"/bin/cargo", "--version").CombinedOutput(); err != nil {
			t.Skipf("this user has no cargo: %v: %s", err, out)
		}
		mux := http.NewServeMux()
		s := newSite(h, mux, true)
		base := "https://index.example.org:" + s.port
		mux.HandleFunc("/index/config.json", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"dl":%q}`, base+"/crates") })
		mux.HandleFunc("/index/e2/e-/e2e-demo", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"name":"e2e-demo","vers":"1.0.0","deps":[],"features":{},"yanked":false,"cksum":"%x"}`+"\n", sha256.Sum256(crate))
		})
		mux.HandleFunc("/crates/e2e-demo/1.0.0/download", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(crate) }) // cargo checks the sum
		config := filepath.Join(h.home, ".cargo", "config.toml")
		if err := os.Mkdir(filepath.Dir(config), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(config, fmt.Appendf(nil, "[registries.demo]\nindex = \"sparse+%s/index/\"\n", base), 0o644); err != nil {
			t.Fatal(err)
		}
		h.own(h.home)
		h.write("Cargo.toml", "[package]\nname = \"e2e\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[dependencies]\ne2e-demo = { version = \"1\", registry = \"demo\" }\n")
		h.write("src/main.rs", "fn main() { println!(\"{}\", e2e_demo::WORD); }\n")
		flags := append([]string{"--mount", toolchain + ":/opt/rust:ro", "--env", "CARGO_HTTP_CAINFO=" + filepath.Join(h.project, "ca.pem")}, s.flags...)
		const line = "PATH=/opt/rust/bin:$PATH cargo -q run --config net.retry=0"
		h.works(2*time.Minute, "swordfish", line, append([]string{"--allow", "@cargo"}, flags...)...)
		h.refused(line, append([]string{"--env", "CARGO_REGISTRIES_DEMO_INDEX=sparse+" + base + "/index/"}, flags...)...)
	})
}

// rustToolchain finds the directory of the Rust tools themselves, behind rustup's stand-ins, which want the home directory.
func rustToolchain(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "rustc", "--print", "sysroot").Output()
	dir := strings.TrimSpace(string(out))
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "bin", "cargo"))
	}
	if err != nil {
		t.Skip(err)
	}
	return dir
}

// newCrate makes a Rust package of one constant.
func newCrate(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	archive := tar.NewWriter(z)
	for _, f := range []struct{ name, content string }{
		{"Cargo.toml", "[package]\nname = \"e2e-demo\"\nversion = \"1.0.0\"\nedition = \"2021\"\n"},
		{"src/lib.rs", "pub const WORD: &str = \"swordfish\";\n"},
	} {
		err := archive.WriteHeader(&tar.Header{Name: "e2e-demo-1.0.0/" + f.name, Mode: 0o644, Size: int64(len(f.content))})
		if err == nil {
			_, err = archive.Write([]byte(f.content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
