package build

import (
	"bytes"
	"embed"
	"errors"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Recipe says what an image of packages is made of, and how it is started.
type Recipe struct {
	// Packages are names as apt-get takes them: NAME, NAME=VERSION or NAME/SUITE. What they depend on comes with them; what they recommend does not.
	Packages []string `yaml:"packages"`
	// Exclude are paths that are left out with all below them, Keep those that stay all the same. A * stands for any part of one name.
	Exclude []string `yaml:"exclude"`
	Keep    []string `yaml:"keep"`
	// Env, WorkingDir and Cmd are the image's configuration: NAME=VALUE, an absolute path, and the words of a command.
	Env        []string `yaml:"env"`
	WorkingDir string   `yaml:"workdir"`
	Cmd        []string `yaml:"cmd"`
}

// maxRecipe bounds a recipe in bytes, maxPackages what it may name. The kernel bounds the command line that the names go into at a quarter of the stack (execve(2)).
const (
	maxRecipe   = 256 << 10
	maxPackages = 2000
)

//go:embed recipes/*.yaml
var recipes embed.FS

// NamedRecipe returns a recipe that comes with this program: "default".
func NamedRecipe(name string) (Recipe, error) {
	data, err := recipes.ReadFile("recipes/" + name + ".yaml")
	if err != nil {
		return Recipe{}, fault.New(fault.NotFound, "there is no recipe %.80q", name).WithHint("write a file's path, or: default").Because(fs.ErrNotExist)
	}
	return ParseRecipe(data)
}

// ParseRecipe reads a recipe from YAML. What it does not know is an error.
func ParseRecipe(data []byte) (Recipe, error) {
	var r Recipe
	if len(data) > maxRecipe {
		return r, fault.New(fault.TooMany, "the recipe has more than %d KiB", maxRecipe>>10)
	}
	d, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithKnownFields())
	if err == nil {
		err = d.Load(&r)
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("it is empty")
	}
	if err != nil {
		return Recipe{}, fault.New(fault.Invalid, "the recipe cannot be read").WithHint("a recipe has: packages, exclude, keep, env, workdir, cmd; see docs/images.md").Because(err)
	}
	return r, r.check()
}

// packageName is what apt-get takes for exactly one package. A minus sign at the end would have it removed.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*[a-z0-9+.](:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+|/[a-z0-9.-]+)?$`)

func (r Recipe) check() error {
	if len(r.Packages) == 0 {
		return fault.New(fault.Invalid, "the recipe names no package").WithHint("--packages bash,git, or packages: in the recipe")
	}
	if len(r.Packages) > maxPackages {
		return fault.New(fault.TooMany, "the recipe names more than %d packages", maxPackages)
	}
	for _, name := range r.Packages {
		if len(name) > 255 || !packageName.MatchString(name) {
			return fault.New(fault.Invalid, "%.80q is no name of a package", name).WithHint("write NAME, NAME=VERSION or NAME/SUITE")
		}
	}
	for _, pattern := range append(append([]string{}, r.Exclude...), r.Keep...) {
		if _, err := path.Match(pattern, "x"); err != nil || !strings.HasPrefix(pattern, "/") || pattern == "/" || path.Clean(pattern) != pattern {
			return fault.New(fault.Invalid, "%.80q is no path that can be left out or kept", pattern).WithHint("write an absolute path, such as /usr/share/man")
		}
	}
	return nil
}

// excludes says whether a path of the layer is left out.
func (r Recipe) excludes(name string) bool {
	return covers(r.Exclude, name) && !covers(r.Keep, name)
}

// covers says whether one of the patterns stands for a path or for something above it.
func covers(patterns []string, name string) bool {
	for _, pattern := range patterns {
		depth := strings.Count(pattern, "/")
		parts := strings.SplitN(name, "/", depth+1)
		if len(parts) < depth {
			continue
		}
		if ok, err := path.Match(pattern[1:], strings.Join(parts[:depth], "/")); ok && err == nil {
			return true
		}
	}
	return false
}
