package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/disk"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/guest/initramfs"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestMain is the tests, and inside a machine it is what stands for the runner there.
func TestMain(m *testing.M) {
	if os.Args[0] == "cofferdam-runner" && os.Getpid() == 1 {
		os.Exit(inside())
	}
	status := m.Run()
	if path, err := initial(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // the system clears what is left
	}
	os.Exit(status)
}

// machine is a virtual machine that was started by hand, under emulation and without a jail.
type machine struct {
	*boot.Host
	port  *os.File      // the host's end
	gone  chan struct{} // closed when QEMU has ended
	born  time.Time
	waits bool // it is prepared
}

// folder is where "make vm" has put the kernel.
func folder() string {
	if dir := os.Getenv("COFFERDAM_BIN"); dir != "" {
		return filepath.Join(dir, boot.FolderName)
	}
	return filepath.Join(testenv.Module(), "bin", boot.FolderName)
}

// needMachine skips where there is no kernel or no emulator.
func needMachine(t *testing.T) boot.About {
	t.Helper()
	about, err := boot.ReadAbout(folder())
	if err != nil {
		t.Skipf("needs a kernel for virtual machines: %v", err)
	}
	testenv.Need(t, "tool:"+about.QEMU)
	return about
}

// initial makes an initial file system, once: that of "make vm", over which the init of this tree and these tests as the runner are laid by a second archive.
var initial = sync.OnceValues(func() (path string, err error) {
	dir, err := os.MkdirTemp("", "cofferdam-guest-test")
	if err != nil {
		return "", err
	}
	init := filepath.Join(dir, "cofferdam-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "github.com/cofferdam/cofferdam/cmd/cofferdam-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the init: %w: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	base, err := os.ReadFile(filepath.Join(folder(), boot.InitramName))
	if err != nil {
		return "", err
	}
	out, err := os.Create(filepath.Join(dir, "initial"))
	if err != nil {
		return "", err
	}
	_, err = out.Write(base)
	return out.Name(), errors.Join(err, initramfs.Build(out, initramfs.Contents{Init: init, Runner: self}), out.Close())
})

// start starts a machine with disks. It ends with the test.
func start(t *testing.T, disks ...string) *machine {
	t.Helper()
	about := needMachine(t)
	initrd, err := initial()
	if err != nil {
		t.Fatal(err)
	}
	kind, options := "pci", "q35"
	if about.Machine == "microvm" {
		kind, options = "device", "microvm,acpi=off,pit=on,pic=on,rtc=on,x-option-roms=off"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "256", "-M", options, "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max",
		"-global", "virtio-mmio.force-legacy=false", "-serial", "stdio",
		"-kernel", filepath.Join(folder(), boot.KernelName), "-initrd", initrd, "-append", boot.KernelArguments + " console=ttyS0",
		"-device", "virtio-serial-" + kind, "-chardev", "socket,id=port,fd=3", "-device", "virtserialport,chardev=port,name=" + boot.PortName,
		"-netdev", "user,id=net,restrict=on", "-device", "virtio-net-" + kind + ",netdev=net",
	}
	for _, dir := range about.Firmware {
		args = append(args, "-L", dir)
	}
	for i, path := range disks {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,readonly=on,file=%s", i, path), "-device", fmt.Sprintf("virtio-blk-%s,drive=d%d,serial=%s", kind, i, boot.DiskSerial(i)))
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(ends[0], true); err != nil {
		t.Fatal(err)
	}
	m := &machine{port: os.NewFile(uintptr(ends[0]), "port"), gone: make(chan struct{}), born: time.Now()}
	m.Host = boot.NewHost(m.port)
	theirs := os.NewFile(uintptr(ends[1]), "machine")
	cmd := exec.Command(about.QEMU, args...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(about.Libraries, ":"))
	var console strings.Builder
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close() // the machine has its own
	go func() {
		_ = cmd.Wait() // that it ends is what counts
		close(m.gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be gone
		<-m.gone
		if t.Failed() {
			t.Logf("the console: %s", console.String())
		}
	})
	if err := m.port.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return m
}

// ended waits for the machine's own end.
func (m *machine) ended(t *testing.T) {
	t.Helper()
	const patience = 30 * time.Second // of a machine that shares its processors
	select {
	case <-m.gone:
	case <-time.After(patience):
		t.Errorf("the machine goes on for %v", patience)
	}
}

// image makes a disk of a directory, or of one file.
func image(t *testing.T, path string) string {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		_, err = disk.Write(context.Background(), path, out, disk.Options{})
	} else {
		_, err = disk.WriteFile(context.Background(), path, boot.FileName, out, disk.Options{})
	}
	const capacity = 64 << 20 // as every disk is, so that one that is empty at first fits
	if err := errors.Join(err, out.Truncate(capacity)); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

// write makes a tree of files; a name that ends with a slash is a directory.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// root is a root file system with next to nothing in it.
func root(t *testing.T) string {
	return image(t, write(t, map[string]string{"etc/ssl/certs/ca-certificates.crt": "the system's authorities\n", "etc/hostname": "image", "tmp/": "", "root/": "", "proc/": "", "dev/": "", "sys/": ""}))
}

func basic() boot.Boot {
	return boot.Boot{
		Seed: [boot.SeedSize]byte{1}, Time: time.Unix(1900000000, 0), Hostname: "inside", MachineID: strings.Repeat("ab", 16),
		Scratch: boot.Scratch{Bytes: 64 << 20, Files: 10000}, Trust: []byte("the sandbox's own authority\n"), Rights: boot.Usual, PIDs: 20,
	}
}

// run boots a machine that is ready and waits for the runner's end.
func (m *machine) run(t *testing.T, b boot.Boot) boot.Ended {
	t.Helper()
	if !m.waits {
		r, err := m.Ready()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("kernel %s was ready after %v", r.Kernel, time.Since(m.born).Round(time.Millisecond))
	}
	at := time.Now()
	if err := m.Boot(b); err != nil {
		t.Fatal(err)
	}
	if err := m.Started(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the runner was started %v after boot", time.Since(at).Round(time.Millisecond))
	e, err := m.Ended()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("it ended after %v: %+v", time.Since(at).Round(time.Millisecond), e)
	return e
}

// nothing reads changes that must not be there.
func (m *machine) nothing(t *testing.T) {
	t.Helper()
	if data, err := io.ReadAll(m.Changes()); err != nil || len(data) != 0 {
		t.Errorf("changes without an overlay workspace: %d bytes, %v", len(data), err)
	}
}
