package initramfs

import (
	"bufio"
	"fmt"
	"io"
)

// file is one entry of an archive. It belongs to root and has no time.
type file struct {
	name         string // relative
	mode         uint32 // kind and permissions, as stat(2) has them
	data         []byte
	major, minor uint32 // of a device
}

// trailer is the name of the entry that ends an archive.
const trailer = "TRAILER!!!"

// write makes an archive in cpio's format "newc", which the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
func write(out io.Writer, files []file) error {
	w := bufio.NewWriter(out)
	for i, f := range append(files, file{name: trailer}) {
		links := 1
		if uint64(len(f.data)) > 1<<32-1 {
			return fmt.Errorf("%s is too large for an archive", f.name)
		}
		// magic, inode, mode, user, group, links, time, size, device, device of a node, length of the name, checksum
		n, err := fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			i+1, f.mode, 0, 0, links, 0, len(f.data), 0, 0, f.major, f.minor, len(f.name)+1, 0, f.name)
		if err != nil {
			return err
		}
		if err := pad(w, n); err != nil {
			return err
		}
		if _, err := w.Write(f.data); err != nil {
			return err
		}
		if err := pad(w, len(f.data)); err != nil {
			return err
		}
	}
	return w.Flush()
}

// pad fills up what is written to a multiple of four bytes.
func pad(w io.Writer, n int) error {
	_, err := w.Write(make([]byte, -n&3))
	return err
}
