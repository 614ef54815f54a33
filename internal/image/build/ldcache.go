package build

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// library is one entry of the loader's cache: a name, and the file that it leads to.
type library struct{ name, path string }

// loaderCache writes /etc/ld.so.cache, as ldconfig does when libraries are installed. The loader of glibc finds its usual directories without, but not those of
// /etc/ld.so.conf.d, and programs that look for libraries by name (Python's ctypes) ask for the cache.
func (l *layer) loaderCache() error {
	if !l.has("usr/sbin/ldconfig") {
		return nil // no glibc
	}
	machine, flags := l.machine()
	if flags == 0 {
		return nil // a machine whose entries are not known here: the loader does without
	}
	dirs, err := l.libraryDirs()
	if err != nil {
		return err
	}
	children := map[string][]string{}
	for _, name := range l.names() {
		children[parentOf(name)] = append(children[parentOf(name)], name)
	}
	var all []library
	seen := map[string]bool{}
	for _, dir := range dirs {
		at, _ := l.find(dir[1:])
		for _, name := range children[at] {
			if key := l.libraryName(name, machine); key != "" && !seen[key] {
				seen[key] = true
				all = append(all, library{key, path.Join(dir, key)})
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	return l.write("etc/ld.so.cache", string(encodeCache(all, flags)), 0o644)
}

// machine reads from the C library what programs run on, and how glibc marks its entries for it (sysdeps/generic/ldconfig.h).
func (l *layer) machine() (elf.Machine, uint32) {
	for machine, m := range map[elf.Machine]struct {
		loader string
		flags  uint32
	}{
		elf.EM_X86_64:  {"usr/lib64/ld-linux-x86-64.so.2", 0x0303},
		elf.EM_AARCH64: {"usr/lib/ld-linux-aarch64.so.1", 0x0a03},
	} {
		if _, n := l.find(m.loader); n != nil {
			return machine, m.flags
		}
	}
	return 0, 0
}

// libraryDirs are the directories that ldconfig looks into, in order: those of its configuration, then the two that it always has.
func (l *layer) libraryDirs() ([]string, error) {
	var dirs []string
	for _, name := range l.names() {
		if path.Dir(name) != "etc/ld.so.conf.d" || path.Ext(name) != ".conf" {
			continue
		}
		data, err := l.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			if dir := strings.TrimSpace(line); strings.HasPrefix(dir, "/") && !slices.Contains(dirs, path.Clean(dir)) {
				dirs = append(dirs, path.Clean(dir))
			}
		}
	}
	return append(dirs, "/lib", "/usr/lib"), nil
}

// libraryName is the name under which a file of a library directory is looked for; empty if it is none.
func (l *layer) libraryName(name string, machine elf.Machine) string {
	_, base, _ := cutLast(name)
	if !strings.HasPrefix(base, "lib") && !strings.HasPrefix(base, "ld-") || !strings.Contains(base, ".so") {
		return ""
	}
	at, n := l.find(name)
	if n == nil || n.kind != file {
		return ""
	}
	e, err := elf.NewFile(io.NewSectionReader(l.spool, n.data.at, n.data.size))
	if err != nil || e.Type != elf.ET_DYN || e.Machine != machine || e.Class != elf.ELFCLASS64 {
		return ""
	}
	if at != name {
		return base // a link: it is there to be found by its name
	}
	if names, err := e.DynString(elf.DT_SONAME); err == nil && len(names) == 1 && l.has(path.Join(parentOf(name), names[0])) {
		return names[0]
	}
	return base
}

// encodeCache writes the cache in glibc's format 1.1 (sysdeps/generic/dl-cache.h), for little-endian machines.
func encodeCache(all []library, flags uint32) []byte {
	const headSize, entrySize = 48, 24
	slices.SortFunc(all, func(a, b library) int { return -compareLibraries(a.name, b.name) }) // the loader searches by halves, downwards
	le := binary.LittleEndian
	var texts bytes.Buffer
	text := func(s string) uint32 {
		at := headSize + entrySize*len(all) + texts.Len()
		texts.WriteString(s + "\x00")
		return uint32(at)
	}
	var entries []byte
	for _, one := range all {
		entries = le.AppendUint32(entries, flags)
		entries = le.AppendUint32(entries, text(one.name))
		entries = le.AppendUint32(entries, text(one.path))
		entries = append(entries, make([]byte, 12)...) // no version of a kernel, no capabilities
	}
	head := append(make([]byte, 0, headSize), "glibc-ld.so.cache1.1"...)
	head = le.AppendUint32(head, uint32(len(all)))
	head = le.AppendUint32(head, uint32(texts.Len()))
	head = append(head, 2) // little-endian
	return slices.Concat(head[:headSize:headSize], entries, texts.Bytes())
}

// compareLibraries orders names as glibc does: numbers by their value (_dl_cache_libcmp in elf/dl-cache.c).
func compareLibraries(a, b string) int {
	for a != "" {
		na, restA := leadingNumber(a)
		nb, restB := leadingNumber(b)
		switch {
		case restA != a && restB != b:
			if na != nb {
				return cmp.Compare(na, nb)
			}
			a, b = restA, restB
		case restA != a:
			return 1
		case restB != b || b == "":
			if b == "" {
				return 1
			}
			return -1
		case a[0] != b[0]:
			return cmp.Compare(a[0], b[0])
		default:
			a, b = a[1:], b[1:]
		}
	}
	return -min(len(b), 1)
}

// leadingNumber cuts digits off the front.
func leadingNumber(s string) (n uint64, rest string) {
	for s != "" && s[0] >= '0' && s[0] <= '9' {
		n = n*10 + uint64(s[0]-'0')
		s = s[1:]
	}
	return n, s
}
