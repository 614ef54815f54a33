package vm

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// Untried is what people are told about a program that drives machines here as its documents say, and was never seen doing it.
const Untried = "not run on hardware"

// pick takes the program that drives machines of level "vm": Firecracker, Cloud Hypervisor or QEMU, the first that is installed and new enough. What is passed over for being
// too old is told with what was taken, and a machine's folder comes before the system's own directories.
func pick(ctx context.Context, folder string, about boot.About) (d driver, detail string, err error) {
	return pickFrom(ctx, []string{folder, "/usr/local/bin", "/usr/bin"}, tunDevice, qemu{about})
}

func pickFrom(ctx context.Context, dirs []string, tun string, last driver) (d driver, detail string, err error) {
	candidates := []driver{}
	if path := lookUp("firecracker", dirs); path != "" {
		candidates = append(candidates, firecracker{path, tun})
	}
	if path := lookUp("cloud-hypervisor", dirs); path != "" {
		candidates = append(candidates, cloudHypervisor{path})
	}
	var over []string
	for _, d := range candidates {
		version, err := d.version(ctx)
		if err != nil {
			over = append(over, "; not used: "+err.Error())
			continue
		}
		return d, d.name() + " " + version + ", " + Untried + strings.Join(over, ""), nil
	}
	version, err := last.version(ctx)
	if err != nil {
		return nil, "", errors.New(err.Error() + strings.Join(over, ""))
	}
	return last, last.name() + " " + version + strings.Join(over, ""), nil
}

// release is the number of a release.
type release [3]int

func (r release) String() string {
	if r[2] == 0 {
		return fmt.Sprintf("%d.%d", r[0], r[1])
	}
	return fmt.Sprintf("%d.%d.%d", r[0], r[1], r[2])
}

// less compares two releases.
func (r release) less(other release) bool {
	for i := range r {
		if r[i] != other[i] {
			return r[i] < other[i]
		}
	}
	return false
}

// parseRelease reads a release's number at the start of a word, as git-describe(1) and package builds write it: two or three numbers, and what they add behind a hyphen or
// plus. A development version is refused, since it has the number of a release that is still to come, with or without what that will have fixed.
func parseRelease(word string) (release, error) {
	numbers, rest := word, ""
	if i := strings.IndexAny(word, "-+"); i >= 0 {
		numbers, rest = word[:i], word[i:]
	}
	parts := strings.Split(numbers, ".")
	var r release
	if len(parts) < 2 || len(parts) > len(r) {
		return r, fmt.Errorf("%q is no number of a release", word)
	}
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil {
			return release{}, fmt.Errorf("%q is no number of a release", word)
		}
		r[i] = int(n)
	}
	if strings.Contains(rest, "dev") || strings.Contains(rest, "rc") {
		return release{}, fmt.Errorf("%q is a version in development", word)
	}
	return r, nil
}

// maxVersion bounds what is read of a program's answer about its version, in bytes.
const maxVersion = 200

// askRelease asks an installed program for its version, and refuses one that is older than the least.
func askRelease(ctx context.Context, program, name, prefix string, least release) (string, error) {
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", program, err)
	}
	first, _, _ := strings.Cut(string(out[:min(len(out), maxVersion)]), "\n")
	word, ok := strings.CutPrefix(strings.TrimSpace(first), prefix)
	if !ok {
		return "", fmt.Errorf("%s does not say that it is %s", program, name)
	}
	got, err := parseRelease(word)
	if err != nil {
		return "", fmt.Errorf("%s: %w", program, err)
	}
	if got.less(least) {
		return "", fmt.Errorf("%s %s has known holes or lacks what is needed: %s is the least", name, word, least)
	}
	return word, nil
}
