package seccomp

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestWithoutSetID decides calls that make or change modes, with and without the bits.
func TestWithoutSetID(t *testing.T) {
	for _, arch := range []Arch{AMD64, ARM64} {
		if _, err := Compile(WithoutSetID(Sandbox()), arch); err != nil {
			t.Errorf("%v: %v", arch, err)
		}
	}
	filter, err := Compile(WithoutSetID(Sandbox()), AMD64)
	if err != nil {
		t.Fatal(err)
	}
	refused := Errno(unix.EPERM)
	for _, c := range []struct {
		name string
		nr   uint32
		args [6]uint64
		want Action
	}{
		{"chmod 4755", unix.SYS_CHMOD, [6]uint64{0, 0o4755}, refused},
		{"chmod 2755", unix.SYS_CHMOD, [6]uint64{0, 0o2755}, refused},
		{"chmod 1777", unix.SYS_CHMOD, [6]uint64{0, 0o1777}, Allow},
		{"chmod 755", unix.SYS_CHMOD, [6]uint64{0, 0o755}, Allow},
		{"fchmod 6755", unix.SYS_FCHMOD, [6]uint64{3, 0o6755}, refused},
		{"fchmodat 4755", unix.SYS_FCHMODAT, [6]uint64{0, 0, 0o4755}, refused},
		{"fchmodat2 4755", unix.SYS_FCHMODAT2, [6]uint64{0, 0, 0o4755}, refused},
		{"openat create 4755", unix.SYS_OPENAT, [6]uint64{0, 0, unix.O_CREAT | unix.O_WRONLY, 0o4755}, refused},
		{"openat tmpfile 4755", unix.SYS_OPENAT, [6]uint64{0, 0, unix.O_TMPFILE | unix.O_WRONLY, 0o4755}, refused},
		{"openat create 644", unix.SYS_OPENAT, [6]uint64{0, 0, unix.O_CREAT | unix.O_WRONLY, 0o644}, Allow},
		{"openat without creating, rubbish as mode", unix.SYS_OPENAT, [6]uint64{0, 0, unix.O_RDONLY | unix.O_DIRECTORY, 0xffffffff}, Allow},
		{"open create 2644", unix.SYS_OPEN, [6]uint64{0, unix.O_CREAT, 0o2644}, refused},
		{"creat 4644", unix.SYS_CREAT, [6]uint64{0, 0o4644}, refused},
		{"mknod 4644", unix.SYS_MKNOD, [6]uint64{0, unix.S_IFREG | 0o4644}, refused},
		{"openat2", unix.SYS_OPENAT2, [6]uint64{}, Errno(unix.ENOSYS)},
	} {
		if got := evaluate(t, filter, c.nr, c.args); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func evaluate(t *testing.T, filter []unix.SockFilter, nr uint32, args [6]uint64) Action {
	t.Helper()
	action, _, err := execute(filter, data{number: nr, arch: AMD64, args: args})
	if err != nil {
		t.Fatal(err)
	}
	return action
}
