// Package initramfs (SANDBOX) makes the initial file system of a virtual machine: its init, the runner, and the drivers that its kernel has as modules.
//
// The same files make the same bytes, whenever and by whom it is built, so that a template of a machine can be known by them.
package initramfs

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// Contents are the files of the host that go into an initial file system.
type Contents struct {
	Init, Runner string
	Modules      []string // in the order in which they are loaded
	Crypt        []string // likewise, those that are loaded only for encrypted scratch
}

// directories are the places that the init mounts at, apart from those of files.
func directories() []string { return []string{"base", "dev", "disks", "groups", "proc", "sys", "tmp"} }

// Build writes an initial file system.
func Build(out io.Writer, c Contents) error {
	var all []file
	for _, d := range directories() {
		all = append(all, file{name: d, mode: unix.S_IFDIR | 0o755})
	}
	// What a program of Go needs before it runs: its standard streams, where the kernel has no console.
	all = append(all, file{name: "dev/null", mode: unix.S_IFCHR | 0o666, major: 1, minor: 3}, file{name: "dev/console", mode: unix.S_IFCHR | 0o600, major: 5, minor: 1})
	for _, program := range []struct{ inside, path string }{{boot.InitPath, c.Init}, {boot.RunnerPath, c.Runner}} {
		data, err := static(program.path)
		if err != nil {
			return fmt.Errorf("read a program for the machine: %w", err)
		}
		all = append(all, file{name: program.inside[1:], mode: unix.S_IFREG | 0o755, data: data})
	}
	for _, drivers := range []struct {
		dir     string
		modules []string
	}{{boot.ModulesPath, c.Modules}, {boot.CryptModulesPath, c.Crypt}} {
		files, err := modules(drivers.dir[1:], drivers.modules)
		if err != nil {
			return err
		}
		all = append(all, files...)
	}
	return write(out, all)
}

// modules are a directory of drivers, if there are any.
func modules(dir string, paths []string) (all []file, err error) {
	if len(paths) > 0 {
		all = append(all, file{name: dir, mode: unix.S_IFDIR | 0o755})
	}
	for i, module := range paths {
		data, err := os.ReadFile(module)
		if err != nil {
			return nil, fmt.Errorf("read a driver for the machine: %w", err)
		}
		all = append(all, file{name: fmt.Sprintf("%s/%03d-%s", dir, i, path.Base(module)), mode: unix.S_IFREG | 0o644, data: data})
	}
	return all, nil
}

// static reads a program that needs no other file to run: the machine has none.
func static(path string) ([]byte, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, fault.New(fault.Unsupported, "%s is linked dynamically", path).WithHint("build it with CGO_ENABLED=0, as make build does")
		}
	}
	return os.ReadFile(path)
}
