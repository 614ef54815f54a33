package image

import (
	"archive/tar"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const xattrRecord = "SCHILY.xattr." // by which PAX archives carry extended attributes

// attributes takes of a header what is kept. Set-id bits are not: they would mean something only on a mount that no sandbox has.
func (a *applier) attributes(h *tar.Header) attributes {
	mode := uint32(h.Mode)
	if mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		a.left.setID++
	}
	keep := uint32(0o777)
	if h.Typeflag == tar.TypeDir {
		keep |= unix.S_ISVTX
	}
	out := attributes{mode: mode & keep, uid: h.Uid, gid: h.Gid, mtime: h.ModTime}
	if out.uid < 0 || out.uid > maxID || out.gid < 0 || out.gid > maxID {
		a.left.foreign++
		out.uid, out.gid = within(out.uid), within(out.gid)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if !strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.") || strings.IndexByte(name, 0) >= 0 {
			a.left.xattrs++ // user.overlay.* would be believed by an overlay of an ordinary user
			continue
		}
		if out.xattrs == nil {
			out.xattrs = map[string]string{}
		}
		out.xattrs[name] = value
	}
	return out
}

func within(id int) int {
	if id < 0 || id > maxID {
		return maxID
	}
	return id
}

// setTime sets both times of an open file: utimensat(2) without a name.
func setTime(fd int, at time.Time) error {
	spec := unix.NsecToTimespec(at.UnixNano())
	if at.Unix() < 0 || at.Year() > 2200 { // beyond what nanoseconds in 64 bits hold; no file of an image is from then
		spec = unix.Timespec{}
	}
	times := [2]unix.Timespec{spec, spec}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
