package vm

import (
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestArguments holds QEMU's whole command line: a device that is not in here is one that nobody decided on.
func TestArguments(t *testing.T) {
	q := qemu{boot.About{Firmware: []string{"/usr/share/qemu", "/usr/share/seabios"}}}
	h := hardware{accel: emulated, board: boardCommon, memory: 512 << 20, cpus: 2, control: 5, port: 6, disks: []descriptor{7, 8}, wire: 9}
	common := `qemu -nodefaults -no-user-config -display none -no-reboot -name sandbox
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-m 512M -smp 2 -kernel /kernel -initrd /initramfs -append console=ttyS0 quiet panic=-1 reboot=t GODEBUG=asyncpreemptoff=1 tsc=reliable
-chardev socket,id=control,fd=5 -mon chardev=control,mode=control
-chardev stdio,id=console,signal=off -serial chardev:console
-L /firmware0 -L /firmware1
-accel tcg,thread=multi,tb-size=64 -cpu max
-M q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off
-add-fd set=10,fd=7 -blockdev driver=file,node-name=disk10,filename=/dev/fdset/10,read-only=on,locking=off -device virtio-blk-pci,drive=disk10,serial=disk0
-add-fd set=11,fd=8 -blockdev driver=file,node-name=disk11,filename=/dev/fdset/11,read-only=on,locking=off -device virtio-blk-pci,drive=disk11,serial=disk1
-netdev tap,id=wire,fd=9 -device virtio-net-pci,netdev=wire,guest_announce=off,mac=02:cf:0d:00:00:02,romfile=
-device virtio-serial-pci -chardev socket,id=port,fd=6 -device virtserialport,chardev=port,name=cofferdam.0`
	check := func(name string, h hardware, want string) {
		t.Helper()
		if got, want := strings.Join(q.arguments(h), " "), strings.ReplaceAll(want, "\n", " "); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
	}
	check("emulated", h, common)
	h.scratch = 10
	check("encrypted scratch", h, strings.Replace(common, "-netdev", "-add-fd set=12,fd=10 -blockdev driver=file,node-name=disk12,filename=/dev/fdset/12,read-only=off,locking=off "+
		"-device virtio-blk-pci,drive=disk12,serial=disk2,werror=report,rerror=report -netdev", 1))
	h.scratch = 0
	h.accel = hardwareKVM
	check("hardware", h, strings.NewReplacer("-accel tcg,thread=multi,tb-size=64 -cpu max", "-accel kvm -cpu host", " tsc=reliable", "").Replace(common))
	h.accel, h.ram = emulated, 10
	withMemory := strings.Replace(common, "-M q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off",
		"-object memory-backend-file,id=ram,size=512M,mem-path=/proc/self/fd/10,share=on -M q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,memory-backend=ram", 1)
	check("to be kept", h, withMemory)
	h.state = 11
	check("continued", h, withMemory+" -incoming defer")
	h = hardware{accel: emulated, board: boardSmall, memory: 128 << 20, cpus: 1, control: 5, port: 6, wire: 7}
	got := strings.Join(q.arguments(h), " ")
	for _, want := range []string{"-M microvm,acpi=off,pit=on,pic=on,rtc=on,x-option-roms=off", "-global virtio-mmio.force-legacy=false", "-append console=ttyS0 quiet panic=-1 reboot=t GODEBUG=asyncpreemptoff=1 tsc=reliable acpi=off initcall_blacklist=cmos_init,pci_arch_init -chardev", "-device virtio-net-device,netdev=wire,guest_announce=off,mac=02:cf:0d:00:00:02", "-device virtio-serial-device"} {
		if !strings.Contains(got, want) {
			t.Errorf("small board: no %q in %s", want, got)
		}
	}
	for disks, board := range map[int]string{6: "-M microvm", 7: "-M q35"} {
		h.disks = slices.Repeat([]descriptor{8}, disks)
		if got := strings.Join(q.arguments(h), " "); !strings.Contains(got, board) {
			t.Errorf("small board with %d disks: no %q in %s", disks, board, got)
		}
	}
}

// TestShown looks at what QEMU would see: its parts, each from a real file, and no directory of the host but firmware.
func TestShown(t *testing.T) {
	testenv.Need(t, "tool:qemu-system-x86_64")
	q := qemu{boot.About{QEMU: "/usr/bin/qemu-system-x86_64", Firmware: []string{"/usr/share/qemu", "/usr/share/seabios"}}}
	shown, err := q.shown()
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, s := range shown {
		if slices.Contains(targets, s.Target) {
			t.Errorf("%s is shown twice", s.Target)
		}
		targets = append(targets, s.Target)
		info, err := os.Lstat(s.Source)
		if err != nil || info.Mode()&os.ModeSymlink != 0 {
			t.Errorf("%s: %v, %v: a link is not followed when it is shown", s.Source, info, err)
			continue
		}
		if info.IsDir() != strings.HasPrefix(s.Target, placeFirmware) {
			t.Errorf("%s is shown as %s", s.Source, s.Target)
		}
	}
	for _, want := range []string{placeProgram, "/lib/libc.so.6", "/lib/libglib-2.0.so.0", "/lib64/ld-linux-x86-64.so.2"} {
		if !slices.Contains(targets, want) {
			t.Errorf("%s is missing among %q", want, targets)
		}
	}
}

// TestNeededBy holds the names of libraries against those that the standard library reads, over everything that QEMU consists of.
func TestNeededBy(t *testing.T) {
	testenv.Need(t, "tool:qemu-system-x86_64")
	shown, err := qemu{boot.About{QEMU: "/usr/bin/qemu-system-x86_64"}}.shown()
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, s := range shown {
		f, err := elf.Open(s.Source)
		if err != nil {
			t.Fatal(err)
		}
		got, err := neededBy(f)
		want, wantErr := f.ImportedLibraries()
		_ = f.Close() // only read
		if err != nil || wantErr != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q (%v), want %q (%v)", s.Source, got, err, want, wantErr)
		}
		names += len(got)
	}
	if names < len(shown) {
		t.Errorf("%d names in %d files", names, len(shown))
	}
}

func TestLibrariesMissing(t *testing.T) {
	if _, err := libraries([]container.Shown{{Source: "/proc/self/exe"}}, nil); err != nil {
		t.Errorf("a program that links nothing: %v", err)
	}
	testenv.Need(t, "tool:qemu-system-x86_64")
	if _, err := libraries([]container.Shown{{Source: "/usr/bin/qemu-system-x86_64"}}, []string{t.TempDir()}); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("without its libraries: %v", err)
	}
	text := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := libraries([]container.Shown{{Source: text}}, nil); err == nil {
		t.Error("a script was taken for a program")
	}
}
