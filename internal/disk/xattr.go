package disk

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	xattrHeader = 12
	xattrEntry  = 4
	xattrUser   = 1 // the number that stands for the prefix "user."
	userPrefix  = "user."
	// maxXattrs is how many bytes of attributes one file may have, so that its inode still fits into a block. What has more is stored without.
	maxXattrs = 2048
	// overlayPrefix is that of overlay's own marks, which would lead the lookups of whoever mounts the disk below an overlay (overlayfs.rst, "User xattr").
	overlayPrefix = "user.overlay."
)

// readXattrs returns the encoded user.* attributes of a file, nil if there are none. Others mean something to the kernel and are left out without a word:
// a disk may grant nothing. whole is false if attributes are missing because they do not fit or cannot be read.
func readXattrs(f *os.File) (encoded []byte, whole bool) {
	list := make([]byte, maxXattrs)
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if err != nil {
		return nil, err == unix.ENOTSUP
	}
	names := strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	value := make([]byte, maxXattrs)
	for _, name := range names {
		short, ok := strings.CutPrefix(name, userPrefix)
		if !ok || short == "" || strings.HasPrefix(name, overlayPrefix) {
			continue
		}
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil || len(short) > maxName {
			return nil, false
		}
		encoded = appendXattr(encoded, short, value[:n])
		if len(encoded) > maxXattrs {
			return nil, false
		}
	}
	return encoded, true
}

// appendXattr adds one attribute to those of an inode, whose header it makes if it is the first.
func appendXattr(b []byte, name string, value []byte) []byte {
	if len(b) == 0 {
		b = make([]byte, xattrHeader) // no filter, nothing shared
	}
	b = append(b, byte(len(name)), xattrUser)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	b = append(append(b, name...), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
