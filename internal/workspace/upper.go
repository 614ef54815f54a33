package workspace

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	// idRange is how many ids a sandbox has. An owner outside of it was not chosen inside: the kernel kept the host's when it copied a file up.
	idRange = 65536
	// xattrPrefix is what overlayfs uses when mounted with userxattr.
	xattrPrefix = "user.overlay."
)

// inside maps an owner in the upper tree to the id inside. 0 also stands for an owner that the run did not choose.
func (c *collector) inside(id uint32) uint32 {
	if id < c.o.IDShift || id-c.o.IDShift >= idRange {
		return 0
	}
	return id - c.o.IDShift
}

// ownerChanged says whether an id inside is a wish for another owner. 0 never is: root inside stands for the owner of the workspace.
func ownerChanged(was, now uint32) bool { return now != 0 && now != was }

// permit makes an entry readable to its owner where that is not root. The upper tree is thrown away, so nothing is lost.
func (c *collector) permit(up *os.File, name string, st unix.Stat_t) error {
	format, want := st.Mode&unix.S_IFMT, uint32(0)
	switch format {
	case unix.S_IFREG:
		want = 0o400
	case unix.S_IFDIR:
		want = 0o700
	}
	if os.Geteuid() == 0 || st.Mode&want == want {
		return nil
	}
	return chmodAt(up, name, format, st.Mode&modeBits|want)
}

// isWhiteout says whether an entry of the upper tree marks a deletion: a 0:0 character device, or an empty file with an attribute.
func isWhiteout(up *os.File, name string, st unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		if st.Size != 0 {
			return false
		}
		f, _, err := openFile(up, name)
		if err != nil {
			return false
		}
		defer f.Close()
		return hasMark(f, "whiteout", 0)
	}
	return false
}

// hasMark reads one attribute of overlayfs, and compares its first byte if want is not 0. For "opaque" only y hides the workspace; x merely says
// that whiteouts with attributes may be inside.
func hasMark(f *os.File, mark string, want byte) bool {
	buf := make([]byte, 8)
	n, err := unix.Fgetxattr(int(f.Fd()), xattrPrefix+mark, buf)
	return err == nil && (want == 0 || n == 1 && buf[0] == want)
}
