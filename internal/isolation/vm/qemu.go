package vm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/kvm"
	"github.com/cofferdam/cofferdam/internal/netns"
)

// qemu drives QEMU 7.2 and later.
type qemu struct{ about boot.About }

// The places in a machine's bare root.
const (
	placeProgram  = "/usr/bin/qemu-system-x86_64" // where QEMU's paths for modules, which are relative to its own, lead to placeModules
	placeLibrary  = "/lib"
	placeModules  = "/usr/lib/" + multiarch + "/qemu"
	placeFirmware = "/firmware"
	placeKernel   = "/kernel"
	placeInitram  = "/initramfs"
)

func (q qemu) name() string { return "QEMU" }

func (q qemu) version(ctx context.Context) (string, error) {
	if !exists(q.about.QEMU) {
		return "", fmt.Errorf("QEMU is not at %s", q.about.QEMU)
	}
	cmd := exec.CommandContext(ctx, q.about.QEMU, "--version")
	cmd.Env = []string{"LD_LIBRARY_PATH=" + strings.Join(q.about.Libraries, ":")}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ask QEMU for its version: %w", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(first, "QEMU emulator version "), nil
}

// emulationCache is the size in MiB of the memory in which emulated code is kept. QEMU's own choice grows with the guest's memory, up to a gibibyte.
const emulationCache = 64

func (q qemu) launch(h hardware) (launch, error) {
	shown, err := q.shown()
	if err != nil {
		return launch{}, err
	}
	l := launch{program: q.about.QEMU, Machine: container.Machine{Path: placeProgram, Args: q.arguments(h), Env: []string{"LD_LIBRARY_PATH=" + placeLibrary}}}
	l.Show = append(shown, container.Shown{Source: h.kernel, Target: placeKernel}, container.Shown{Source: h.initram, Target: placeInitram})
	if h.accel == hardwareKVM {
		l.Devices = []string{kvm.Device}
	}
	if h.ram != 0 {
		l.Proc = true // QEMU opens the file of a memory by its path
	}
	return l, nil
}

// smallPlaces is how many devices the small board has places for (QEMU's docs/system/i386/microvm.rst), and ownDevices how many a machine has that are no disks.
const (
	smallPlaces = 8
	ownDevices  = 2
)

// arguments is the command line: everything that a machine has is in this table, and QEMU adds nothing of its own.
func (q qemu) arguments(h hardware) []string {
	if len(h.disks)+ownDevices > smallPlaces {
		h.board = boardCommon // for which a kernel that has everything built in has the drivers too
	}
	args := []string{
		"qemu", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "sandbox",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-m", strconv.FormatInt(h.memory>>20, 10) + "M", "-smp", strconv.Itoa(h.cpus),
		"-kernel", placeKernel, "-initrd", placeInitram, "-append", commandLine(h),
		"-chardev", "socket,id=control,fd=" + h.control.String(), "-mon", "chardev=control,mode=control",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", // with what QEMU itself says
	}
	for i := range q.about.Firmware {
		args = append(args, "-L", placeFirmware+strconv.Itoa(i))
	}
	switch h.accel {
	case hardwareKVM:
		args = append(args, "-accel", "kvm", "-cpu", "host")
	case emulated:
		args = append(args, "-accel", fmt.Sprintf("tcg,thread=multi,tb-size=%d", emulationCache), "-cpu", "max")
	}
	kind, bus := "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off", "pci"
	if h.board == boardSmall {
		kind, bus = "microvm,acpi=off,pit=on,pic=on,rtc=on,x-option-roms=off", "device"
		args = append(args, "-global", "virtio-mmio.force-legacy=false")
	}
	if h.ram != 0 {
		args = append(args, "-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=/proc/self/fd/%d,share=on", h.memory>>20, h.ram))
		kind += ",memory-backend=ram"
	}
	args = append(args, "-M", kind)
	for i, fd := range h.disks {
		args = append(args, qemuDisk(i, fd, bus, "read-only=on", "")...)
	}
	if h.scratch != 0 { // what cannot be written is told to the machine's kernel, where QEMU alone would stop the machine
		args = append(args, qemuDisk(len(h.disks), h.scratch, bus, "read-only=off", ",werror=report,rerror=report")...)
	}
	rom := map[string]string{"pci": ",romfile=", "device": ""}[bus]
	args = append(args,
		"-netdev", "tap,id=wire,fd="+h.wire.String(), "-device", "virtio-net-"+bus+",netdev=wire,guest_announce=off,mac="+netns.InsideMAC()+rom, // a copy has not moved: nobody has to be told
		"-device", "virtio-serial-"+bus, "-chardev", "socket,id=port,fd="+h.port.String(), "-device", "virtserialport,chardev=port,name="+boot.PortName,
	)
	if h.state != 0 {
		args = append(args, "-incoming", "defer")
	}
	return args
}

// qemuDisk is one disk on the command line.
func qemuDisk(i int, fd descriptor, bus, access, more string) []string {
	set := strconv.Itoa(10 + i)
	return []string{
		"-add-fd", "set=" + set + ",fd=" + fd.String(),
		"-blockdev", "driver=file,node-name=disk" + set + ",filename=/dev/fdset/" + set + "," + access + ",locking=off",
		"-device", "virtio-blk-" + bus + ",drive=disk" + set + ",serial=" + boot.DiskSerial(i) + more,
	}
}

// commandLine is what the kernel is told.
func commandLine(h hardware) string {
	line := "console=ttyS0 " + boot.KernelArguments
	if h.board == boardSmall || h.accel == emulated {
		line += " tsc=reliable" // it is the one clock that all others here are made of
	}
	if h.board == boardSmall {
		line += " " + boot.SmallArguments
	}
	return line
}

func (d descriptor) String() string { return strconv.Itoa(int(d)) }

// shown is what QEMU consists of: its program, what that links, the module of its emulator, firmware.
func (q qemu) shown() ([]container.Shown, error) {
	programs := []container.Shown{{Source: real(q.about.QEMU), Target: placeProgram}}
	if module := lookUp("accel-tcg-x86_64.so", q.directories("/qemu")); module != "" { // built in, in other builds
		programs = append(programs, container.Shown{Source: module, Target: placeModules + "/accel-tcg-x86_64.so"})
	}
	linked, err := libraries(programs, q.directories(""))
	if err != nil {
		return nil, fmt.Errorf("find QEMU's libraries: %w", err)
	}
	shown := append(programs, linked...)
	for i, dir := range q.about.Firmware {
		shown = append(shown, container.Shown{Source: real(dir), Target: placeFirmware + strconv.Itoa(i)})
	}
	return shown, nil
}

// directories are where libraries are looked for: where QEMU's own were unpacked, then where systems have them.
func (q qemu) directories(below string) []string {
	var dirs []string
	for _, dir := range append(slices.Clone(q.about.Libraries), "/lib/"+multiarch, "/usr/lib/"+multiarch, "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib") {
		dirs = append(dirs, dir+below)
	}
	return dirs
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (q qemu) attend(ctx context.Context, control io.ReadWriteCloser) (monitor, error) {
	return newQMP(ctx, control)
}
