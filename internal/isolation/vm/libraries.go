package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/cofferdam/cofferdam/internal/isolation/container"
)

// multiarch is Debian's name for the directories of this processor's libraries (dpkg-architecture(1)).
const multiarch = "x86_64-linux-gnu"

// mostLibraries bounds what a program may link; QEMU 7.2 as Debian has it links about a hundred.
const mostLibraries = 400

// libraries returns everything that ELF programs link, and what those link, each under its own name in placeLibrary, and the programs' interpreter at its path. They
// are looked for in directories, the first one first.
func libraries(programs []container.Shown, dirs []string) ([]container.Shown, error) {
	var found []container.Shown
	seen, todo := map[string]bool{}, []string{}
	for _, p := range programs {
		todo = append(todo, p.Source)
	}
	for len(todo) > 0 {
		path := todo[0]
		todo = todo[1:]
		needed, interpreter, err := linked(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if interpreter != "" && !seen[filepath.Base(interpreter)] {
			seen[filepath.Base(interpreter)] = true
			found = append(found, container.Shown{Source: real(interpreter), Target: interpreter})
		}
		for _, name := range needed {
			if seen[name] {
				continue
			}
			seen[name] = true
			source := lookUp(name, dirs)
			if source == "" {
				return nil, fmt.Errorf("%s needs %s, which is not installed", path, name)
			}
			found = append(found, container.Shown{Source: source, Target: placeLibrary + "/" + name})
			todo = append(todo, source)
		}
		if len(found) > mostLibraries {
			return nil, errors.New("too many libraries")
		}
	}
	return found, nil
}

// linked reads which libraries an ELF file names, and its interpreter.
func linked(path string) (needed []string, interpreter string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	if needed, err = neededBy(f); err != nil {
		return nil, "", err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		const longest = 4096 // PATH_MAX
		text, err := io.ReadAll(io.LimitReader(p.Open(), longest))
		if err != nil {
			return nil, "", err
		}
		interpreter = strings.TrimRight(string(text), "\x00")
	}
	return needed, interpreter, nil
}

// neededBy reads the names of the libraries that an ELF file asks for, and of the table of all its names no more than those: together the tables of what QEMU links
// are over a mebibyte.
func neededBy(f *elf.File) ([]string, error) {
	offsets, err := f.DynValue(elf.DT_NEEDED)
	if err != nil || len(offsets) == 0 {
		return nil, err
	}
	dynamic := f.SectionByType(elf.SHT_DYNAMIC) // there is one: the offsets came out of it
	if int(dynamic.Link) >= len(f.Sections) {
		return nil, errors.New("its libraries' names are nowhere")
	}
	table := f.Sections[dynamic.Link]
	if table.Type != elf.SHT_STRTAB || table.ReaderAt == nil { // there is none for what is compressed
		return nil, errors.New("its libraries' names are not in a table of names")
	}
	var names []string
	var name [256]byte // NAME_MAX and the end
	for _, at := range offsets {
		n, err := table.ReadAt(name[:], int64(at))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		text, _, whole := bytes.Cut(name[:n], []byte{0})
		if !whole {
			return nil, errors.New("the name of one of its libraries has no end")
		}
		names = append(names, string(text))
	}
	return names, nil
}

// lookUp finds a library by its name, behind links, which are not followed when it is shown.
func lookUp(name string, dirs []string) string {
	if strings.Contains(name, "/") {
		return ""
	}
	for _, dir := range dirs {
		if path := dir + "/" + name; exists(path) {
			return real(path)
		}
	}
	return ""
}

func real(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}
