package files

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// maxEntries bounds a list: beyond it a directory is for programs, not for people.
const maxEntries = 10000

// entry is one line of a list.
type entry struct {
	Name     string `json:"name,omitempty"` // bytes that are not UTF-8 replaced
	Raw      string `json:"raw,omitempty"`  // then the name's bytes in base64
	Type     string `json:"type,omitempty"` // file, dir, link or other
	Size     int64  `json:"size"`
	Mode     string `json:"mode,omitempty"`     // as ls prints it
	Modified string `json:"modified,omitempty"` // RFC 3339
	Target   string `json:"target,omitempty"`   // of a link; likewise replaced
}

// truncated is the last line of a list that has more.
type truncated struct {
	Truncated bool `json:"truncated"`
}

// list prints what a directory holds, by name.
func list(out io.Writer, path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return named(path, errors.New("is not a directory"))
	}
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close() // opened for reading
	names, err := dir.Readdirnames(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	more := len(names) > maxEntries
	names = names[:min(len(names), maxEntries)]
	slices.Sort(names)
	w := bufio.NewWriter(out)
	lines := json.NewEncoder(w)
	for _, name := range names {
		full := filepath.Join(path, name)
		fi, err := os.Lstat(full)
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			continue
		}
		if err != nil {
			return err
		}
		e := describe(name, fi)
		if e.Type == "link" {
			target, _ := os.Readlink(full) // it may have gone: a link without a target
			e.Target = strings.ToValidUTF8(target, "\ufffd")
		}
		if err := lines.Encode(e); err != nil {
			return err
		}
	}
	if more {
		if err := lines.Encode(truncated{true}); err != nil {
			return err
		}
	}
	return w.Flush()
}

// stat prints what a path leads to, links followed.
func stat(out io.Writer, path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(describe(filepath.Base(path), fi))
}

func describe(name string, fi fs.FileInfo) entry {
	e := entry{Name: name, Type: "other", Size: fi.Size(), Mode: lsMode(fi), Modified: fi.ModTime().UTC().Format(time.RFC3339Nano)}
	if !utf8.ValidString(name) {
		e.Name, e.Raw = strings.ToValidUTF8(name, "\ufffd"), base64.StdEncoding.EncodeToString([]byte(name))
	}
	switch fi.Mode().Type() {
	case 0:
		e.Type = "file"
	case fs.ModeDir:
		e.Type = "dir"
	case fs.ModeSymlink:
		e.Type = "link"
	}
	return e
}

// lsMode writes type and permissions as ls does.
func lsMode(fi fs.FileInfo) string {
	m := fi.Mode()
	text := []byte("-rwxrwxrwx")
	for i := range 9 {
		if m&(1<<(8-i)) == 0 {
			text[1+i] = '-'
		}
	}
	for _, special := range []struct {
		bit   fs.FileMode
		at    int
		x, no byte
	}{{fs.ModeSetuid, 3, 's', 'S'}, {fs.ModeSetgid, 6, 's', 'S'}, {fs.ModeSticky, 9, 't', 'T'}} {
		if m&special.bit == 0 {
			continue
		}
		if text[special.at] == 'x' {
			text[special.at] = special.x
		} else {
			text[special.at] = special.no
		}
	}
	for _, kind := range []struct {
		bit    fs.FileMode
		letter byte
	}{{fs.ModeDir, 'd'}, {fs.ModeSymlink, 'l'}, {fs.ModeNamedPipe, 'p'}, {fs.ModeSocket, 's'}, {fs.ModeCharDevice, 'c'}, {fs.ModeDevice, 'b'}} {
		if m&kind.bit != 0 {
			text[0] = kind.letter
			break
		}
	}
	return string(text)
}

// owner is who owns a file inside.
func owner(fi fs.FileInfo) (uid, gid int, ok bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}
