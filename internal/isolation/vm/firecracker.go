package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/netns"
)

// firecracker drives Firecracker 1.16.2 and later, as its documents describe it: it has not been run on hardware yet.
//
// The machine is described in one file that Firecracker reads when it starts, and it is started without its API: nobody can change the machine afterwards. Its own
// jailer is not used, since [container.Machine] holds every program of this level in the same way.
type firecracker struct {
	program string
	tun     string // the device by which it attaches to the network
}

// firecrackerLeast is the first release without the known holes: CVE-2026-122192 (memory of the process seen from inside, fixed in 1.16.2), CVE-2026-5747 (writes out of
// bounds in virtio over PCI, fixed in 1.14.4 and 1.15.1) and CVE-2026-1386 (links followed by its jailer, fixed in 1.13.2 and 1.14.1). The first affects every older line.
var firecrackerLeast = release{1, 16, 2}

// firecrackerCPUs is the most that Firecracker gives a machine (MAX_SUPPORTED_VCPUS in its src/vmm/src/vmm_config/machine_config.rs).
const firecrackerCPUs = 32

// Where a program that has no port of its own makes its Unix sockets, and which of them is there already and leads to the supervisor: what it connects to when the
// guest asks for the host's port over vsock (Firecracker's docs/vsock.md, from which Cloud Hypervisor's is derived).
var (
	placeSockets = "/sockets"
	placeVsock   = placeSockets + "/vsock"
	placePort    = placeVsock + "_" + strconv.Itoa(boot.VsockPort)
)

// needs are what a machine's program needs in its jail besides what QEMU does.
type needs struct {
	sockets string // a directory in which it makes Unix sockets; it has no others but open ones
	port    string // a Unix socket there that listens already
	room    bool   // it opens the network's device by its name, so that it stays in the room's network namespace, and gets no open one
}

func (f firecracker) needs() needs {
	return needs{sockets: placeSockets, port: placePort, room: true}
}

func (f firecracker) name() string { return "Firecracker" }

// version refuses, too, where only root may open the network's device: the program is nobody, and opens it itself.
func (f firecracker) version(ctx context.Context) (string, error) {
	version, err := askRelease(ctx, f.program, f.name(), "Firecracker v", firecrackerLeast)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(f.tun)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o006 != 0o006 {
		return "", fmt.Errorf("only root may open %s, which Firecracker does as nobody: chmod 666 %[1]s", f.tun)
	}
	return version, nil
}

func (f firecracker) launch(h hardware) (launch, error) {
	if h.cpus > firecrackerCPUs {
		return launch{}, fault.New(fault.Unsupported, "Firecracker gives a machine %d processors at most, not %d", firecrackerCPUs, h.cpus).WithHint("ask for fewer with --cpus")
	}
	l, err := launchStatic(f.program, h)
	if err != nil {
		return launch{}, err
	}
	l.Devices = append(l.Devices, f.tun)
	l.Args = []string{"firecracker", "--id", "sandbox", "--no-api", "--config-file", inherited(h.wire), "--level", "Error"}
	return l, nil
}

// launchStatic says how a program is started that is nothing but itself and libraries of the system.
func launchStatic(program string, h hardware) (launch, error) {
	if h.accel != hardwareKVM || h.ram != 0 || h.state != 0 || h.scratch != 0 {
		return launch{}, fault.New(fault.Unsupported, "only QEMU imitates processors, makes copies of machines and has a disk for encrypted scratch")
	}
	place := "/" + machineProgram
	shown := []container.Shown{{Source: real(program), Target: place}}
	linked, err := libraries(shown, qemu{}.directories(""))
	if err != nil {
		return launch{}, fmt.Errorf("find the libraries of %s: %w", program, err)
	}
	shown = append(append(shown, linked...), container.Shown{Source: h.kernel, Target: placeKernel}, container.Shown{Source: h.initram, Target: placeInitram})
	return launch{program: program, Machine: container.Machine{
		Path: place, Env: []string{"LD_LIBRARY_PATH=" + placeLibrary}, Show: shown, Devices: []string{"/dev/kvm"}, Proc: true, // its files are opened by path
	}}, nil
}

// machineProgram is the name of such a program in its bare root.
const machineProgram = "machine"

// inherited is the path by which a program opens a file that it was handed.
func inherited(d descriptor) string { return "/proc/self/fd/" + d.String() }

// configuration is the file that Firecracker reads, in memory. It is handed on with the number that is meant for the wire, which Firecracker opens by itself.
func (f firecracker) configuration(h hardware) (*os.File, error) {
	words, err := json.Marshal(f.describe(h))
	if err != nil {
		return nil, err
	}
	file, err := memory("firecracker", 0)
	if err != nil {
		return nil, err
	}
	if _, err := file.WriteAt(words, 0); err != nil {
		_ = file.Close() // nothing to keep
		return nil, fmt.Errorf("describe the machine to Firecracker: %w", err)
	}
	return file, nil
}

// The description of a machine, in the words of Firecracker's API (src/firecracker/swagger/firecracker.yaml, FullVmConfiguration). What is not in it, the machine has
// not: no metadata service, no balloon, no entropy device, no log file.
type (
	firecrackerMachine struct {
		Boot    firecrackerBoot    `json:"boot-source"`
		Size    firecrackerSize    `json:"machine-config"`
		Drives  []firecrackerDrive `json:"drives"`
		Network []firecrackerNet   `json:"network-interfaces"`
		Vsock   firecrackerVsock   `json:"vsock"`
	}
	firecrackerBoot struct {
		Kernel string `json:"kernel_image_path"`
		Initrd string `json:"initrd_path"`
		Args   string `json:"boot_args"`
	}
	firecrackerSize struct {
		CPUs int   `json:"vcpu_count"`
		MiB  int64 `json:"mem_size_mib"`
		SMT  bool  `json:"smt"`
	}
	firecrackerDrive struct {
		ID       string `json:"drive_id"`
		Path     string `json:"path_on_host"`
		Root     bool   `json:"is_root_device"`
		ReadOnly bool   `json:"is_read_only"`
		Engine   string `json:"io_engine"`
	}
	firecrackerNet struct {
		ID  string `json:"iface_id"`
		Tap string `json:"host_dev_name"`
		MAC string `json:"guest_mac"`
	}
	firecrackerVsock struct {
		CID  uint32 `json:"guest_cid"`
		Path string `json:"uds_path"`
	}
)

// describe is the table of everything that a machine has. Disks have no numbers of their own here, so that the guest counts them in this order. The engine is named because
// the other one needs io_uring, which the jail refuses.
func (f firecracker) describe(h hardware) firecrackerMachine {
	m := firecrackerMachine{
		// The last reboot= counts: Firecracker ends in order when the guest resets through the keyboard's controller, and with an error when its processor gives up.
		Boot:    firecrackerBoot{Kernel: placeKernel, Initrd: placeInitram, Args: "console=ttyS0 " + boot.KernelArguments + " reboot=k " + boot.VsockArgument},
		Size:    firecrackerSize{CPUs: h.cpus, MiB: h.memory >> 20},
		Drives:  []firecrackerDrive{},
		Network: []firecrackerNet{{ID: "eth0", Tap: netns.DoorName, MAC: netns.InsideMAC()}},
		Vsock:   firecrackerVsock{CID: boot.VsockGuest, Path: placeVsock},
	}
	for i, d := range h.disks {
		m.Drives = append(m.Drives, firecrackerDrive{ID: boot.DiskSerial(i), Path: inherited(d), ReadOnly: true, Engine: "Sync"})
	}
	return m
}

// attend has nothing to speak to: that the machine runs, its guest says.
func (f firecracker) attend(context.Context, io.ReadWriteCloser) (monitor, error) {
	return mute{f.name()}, nil
}

// mute is the monitor of a program that cannot be spoken to.
type mute struct{ program string }

// errMute is the cause of everything that such a monitor refuses.
var errMute = errors.New("there is nobody to speak to")

func (m mute) resume(context.Context) error { return m.refuse() }
func (m mute) pause(context.Context) error  { return m.refuse() }
func (m mute) refuse() error {
	return fault.New(fault.Unsupported, "%s is run without its API: its machine cannot be stopped and copied", m.program).Because(errMute)
}
func (m mute) save(context.Context, *os.File) error   { return m.refuse() }
func (m mute) load(context.Context, descriptor) error { return m.refuse() }
