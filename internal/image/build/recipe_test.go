package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

func TestRecipes(t *testing.T) {
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{"packages: [bash]", true},
		{"packages: [bash, g++, libstdc++6, python3.11, 'bash=5.2.15-2+b13', bash/stable, 'libc6:amd64']", true},
		{"packages: [bash]\nexclude: [/usr/share/man, /usr/lib/python3*/test]\nkeep: [/usr/share/doc/*/copyright]\nenv: [A=b]\nworkdir: /srv\ncmd: [bash, --login]", true},
		{"", false},
		{"packages: []", false},
		{"packages: [bash]\nscripts: [x]", false},
		{"packages: ['git-']", false},
		{"packages: ['-o']", false},
		{"packages: ['--option']", false},
		{"packages: ['Bash']", false},
		{"packages: ['bash*']", false},
		{"packages: ['./x.deb']", false},
		{"packages: ['/etc/passwd']", false},
		{"packages: ['bash git']", false},
		{"packages: ['a;b']", false},
		{"packages: ['" + strings.Repeat("a", 256) + "']", false},
		{"packages: [bash]\nexclude: [usr/share/man]", false},
		{"packages: [bash]\nexclude: [/]", false},
		{"packages: [bash]\nexclude: ['/usr/../etc']", false},
		{"packages: [bash]\nexclude: ['/usr/[']", false},
		{"packages: bash: git", false},
	} {
		if _, err := ParseRecipe([]byte(c.text)); (err == nil) != c.ok || (err != nil && fault.KindOf(err) != fault.Invalid) {
			t.Errorf("%s: %v", c.text, err)
		}
	}
	if _, err := NamedRecipe("default"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"absent", "../recipe", ""} {
		if _, err := NamedRecipe(name); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestExcludes(t *testing.T) {
	r, err := NamedRecipe("default")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"usr/share/man": true, "usr/share/man/man1/ls.1.gz": true, "usr/share/manual": false, "usr/share": false, "usr": false, "": false,
		"usr/share/doc": true, "usr/share/doc/bash": true, "usr/share/doc/bash/copyright": false, "usr/share/doc/bash/README": true,
		"usr/lib/python3.11/pydoc_data/topics.py": true, "usr/lib/python3/dist-packages": false, "man": false,
	} {
		if got := r.excludes(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestPlans(t *testing.T) {
	names, size, err := parsePlan([]byte("Reading\n'http://mirror.example.org/pool/b/bash_5%2b1_amd64.deb' bash_5+1_amd64.deb 100 MD5Sum:0\n'file:/x' a_1%3a2_all.deb 20 \n"))
	if err != nil || size != 120 || strings.Join(names, " ") != "bash_5+1_amd64.deb a_1%3a2_all.deb" {
		t.Error(names, size, err)
	}
	for _, hostile := range []string{"", "Reading\n", "'u' ../x.deb 1", "'u' /x.deb 1", "'u' x.deb many", "'u' x.deb -1", "'u' x.sh 1"} {
		if names, _, err := parsePlan([]byte(hostile)); err == nil {
			t.Errorf("%q: %q", hostile, names)
		}
	}
}

func TestWhatAptSays(t *testing.T) {
	for said, want := range map[string]fault.Kind{
		"E: Unable to locate package nosuch\n":                                    fault.NotFound,
		"W: x\nE: Failed to fetch u  404  Not Found\nE: Unable to fetch some\n":   fault.Unavailable,
		"E: There were unauthenticated packages and -y was used without --allow…": fault.Denied,
		"E: Unable to correct problems, you have held broken packages.\n":         fault.Unavailable,
		"Segmentation fault": fault.Internal,
	} {
		if err := explain(said, errTest); fault.KindOf(err) != want || (want != fault.Internal && fault.HintOf(err) == "") {
			t.Errorf("%q: %v", said, err)
		}
	}
}

// TestExamples holds the recipes of the documentation to what is read.
func TestExamples(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(testenv.Module(), "docs/examples/image-*.yaml"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRecipe(data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
