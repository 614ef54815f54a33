package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// Init is the life of a machine that was switched on. It returns never. It reads no disk before it is told to.
func Init() {
	mustBeFirst()
	p, err := early()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cofferdam-guest:", err)
		end()
	}
	host := boot.NewGuest(p)
	fail(host, idle(host, p))
}

// early makes a root that can be left, mounts the kernel's file systems, loads drivers, and opens the port.
func early() (port, error) {
	unix.Umask(0o022)
	if err := moveRoot(); err != nil {
		return port{}, err
	}
	for _, m := range []struct{ kind, target string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.kind, m.target, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
			return port{}, fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := loadModules(boot.ModulesPath); err != nil {
		return port{}, err
	}
	harden()
	return openPort()
}

// moveRoot puts a mount of the initial file system over itself: the kernel lets nobody leave the first one of all (pivot_root(2)), but any other.
func moveRoot() error {
	const base = "/base"
	if err := unix.Mount("/", base, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := errors.Join(unix.Chdir(base), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	return nil
}

// loadModules loads the drivers of a directory in the order of their names, and gives back their memory.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the kernel has all of them built in
	}
	if err != nil {
		return fmt.Errorf("list drivers: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if err := loadModule(path); err != nil && !errors.Is(err, unix.ENODEV) { // the processor lacks what it is for: what cannot do without says so itself
			return fmt.Errorf("load driver %s: %w", e.Name(), err)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// settleModules loads what encrypted scratch needs, or gives back its memory, and is the end of loading: what is loaded now is all that this kernel will ever have.
func settleModules(s boot.Scratch) error {
	if s.Disk != nil {
		if err := loadModules(boot.CryptModulesPath); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(boot.CryptModulesPath); err != nil {
		return err
	}
	_ = os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("1"), 0) // a kernel that lacks it loads none
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != unix.EEXIST {
		return err
	}
	return nil
}

// harden sets what makes the kernel's inside harder to reach for root of the sandbox, should it get out there. A kernel that lacks one of these lacks what it is about.
func harden() {
	for _, s := range [...]struct{ path, value string }{
		{"kernel/kexec_load_disabled", "1"},
		{"kernel/panic_on_oops", "1"}, // what has hurt the kernel does not go on
		{"kernel/dmesg_restrict", "1"},
		{"kernel/kptr_restrict", "2"},
		{"kernel/perf_event_paranoid", "3"},
		{"kernel/unprivileged_bpf_disabled", "1"},
		{"kernel/io_uring_disabled", "2"},
		{"user/max_user_namespaces", "0"},
		{"fs/protected_symlinks", "1"},
		{"fs/protected_hardlinks", "1"},
		{"fs/protected_fifos", "1"},
		{"fs/protected_regular", "2"},
	} {
		_ = os.WriteFile("/proc/sys/"+s.path, []byte(s.value), 0) // see above
	}
}

// idle waits for the order to boot and carries it out. It returns only on failure.
func idle(host *boot.Guest, p port) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	if err := host.Ready(unix.ByteSliceToString(u.Release[:])); err != nil {
		return err
	}
	for {
		order, err := host.Receive()
		if err != nil {
			return err
		}
		switch {
		case order.Prepare != nil:
			return prepared(host, p, *order.Prepare)
		case order.Boot != nil:
			s := newSandbox(host, p)
			if err := s.build(*order.Boot); err != nil {
				return fmt.Errorf("build the sandbox: %w", err)
			}
			s.live()
		}
		if err := follow(order); err != nil {
			return err
		}
	}
}

// again makes a copy of a machine one of its own and starts the program anew. Go draws the seeds of its own generators from what the kernel gives a program at its start, so only a
// new start makes those fresh. What is kept goes along.
func again(b boot.Boot, p port, k kept) error {
	if err := errors.Join(reseed(&b.Seed), setClock(b.Time)); err != nil {
		return err
	}
	words, err := json.Marshal(task{Boot: b, Kept: k})
	if err != nil {
		return err
	}
	memory, err := unix.MemfdCreate("boot", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("hand on what to build: %w", err)
	}
	if _, err := unix.Pwrite(memory, words, 0); err != nil {
		return fmt.Errorf("hand on what to build: %w", err)
	}
	// By their own numbers: any other may be one that Go uses itself.
	for _, fd := range []int{memory, p.fd, k.Namespace, k.Upper} {
		if fd < 0 {
			continue
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("hand on: %w", err)
		}
	}
	err = syscall.Exec("/proc/self/exe", []string{AgainName, strconv.Itoa(memory), strconv.Itoa(p.fd)}, []string{boot.Undisturbed})
	return fmt.Errorf("start anew: %w", err)
}
