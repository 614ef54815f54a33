package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// withTree writes an initial file system that is another one with the directories and files of a tree on top: the kernel unpacks one archive after the other
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func withTree(to, initram, tree string) (err error) {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	defer func() {
		err = firstError(err, w.Flush(), out.Close())
	}()
	in, err := os.Open(initram)
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := io.Copy(w, in)
	if err != nil {
		return err
	}
	_, _ = w.Write(make([]byte, -n&3)) // Flush says if it went wrong
	err = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		name, relErr := filepath.Rel(tree, path)
		if err != nil || relErr != nil || name == "." {
			return firstError(err, relErr)
		}
		if d.IsDir() {
			entry(w, name, 0o40755, nil)
			return nil
		}
		data, err := os.ReadFile(path)
		entry(w, name, 0o100755, data)
		return err
	})
	entry(w, "TRAILER!!!", 0, nil)
	return err
}

// entry writes one entry in cpio's format "newc". The writer's Flush says if it went wrong.
func entry(w *bufio.Writer, name string, mode uint32, data []byte) {
	// magic, inode, mode, user, group, links, time, size, device, device of a node, length of the name, checksum
	n, _ := fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	_, _ = w.Write(make([]byte, -n&3))
	_, _ = w.Write(data)
	_, _ = w.Write(make([]byte, -len(data)&3))
}
