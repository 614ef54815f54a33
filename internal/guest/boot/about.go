package boot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// The files of a machine's folder, which lies beside the programs as "vm".
const (
	FolderName  = "vm"
	KernelName  = "vmlinux"
	InitramName = "initramfs.cpio"
	AboutName   = "about.json"
)

// KernelArguments are what the guest needs on its kernel's command line: a machine that ends, in whatever way, resets, and so ends the monitor that was told not to
// start it again. What the kernel does not know itself is the environment of the first program, whose threads Go is not to stop by signals: an imitated processor is slow
// at those, and nothing in that program goes on for long.
const KernelArguments = "quiet panic=-1 reboot=t " + Undisturbed

// SmallArguments are what a kernel is told besides on QEMU's board microvm: what that lacks is not looked for, so that the last thing that a kernel says is about its end.
const SmallArguments = "acpi=off initcall_blacklist=cmos_init,pci_arch_init"

// Undisturbed is that environment.
const Undisturbed = "GODEBUG=asyncpreemptoff=1"

// About describes what lies in a machine's folder, as it was built.
type About struct {
	Kernel  string `json:"kernel"`  // release
	Machine string `json:"machine"` // which of QEMU's the kernel has drivers for: q35 or microvm
	QEMU    string `json:"qemu"`    // path of the emulator
	// Libraries and Firmware are the directories in which QEMU's libraries and firmware lie; without Libraries they are where the system has them.
	Libraries []string `json:"libraries,omitempty"`
	Firmware  []string `json:"firmware"`
	// SHA256 are the digests of the files, by name, in hex.
	SHA256 map[string]string `json:"sha256"`
}

// maxAbout bounds the description.
const maxAbout = 64 << 10

// ReadAbout reads the description of a machine's folder.
func ReadAbout(folder string) (About, error) {
	var a About
	data, err := os.ReadFile(filepath.Join(folder, AboutName))
	if err != nil {
		return a, fault.New(fault.Unsupported, "the kernel of virtual machines is missing").WithHint("make vm").Because(err)
	}
	if len(data) > maxAbout {
		return a, fmt.Errorf("%s in %s is longer than %d bytes", AboutName, folder, maxAbout)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return About{}, fmt.Errorf("read %s in %s: %w", AboutName, folder, err)
	}
	if a.Machine != "q35" && a.Machine != "microvm" || a.QEMU == "" || a.SHA256[KernelName] == "" || a.SHA256[InitramName] == "" {
		return About{}, fault.New(fault.Unsupported, "%s in %s is not complete", AboutName, folder).WithHint("make vm")
	}
	return a, nil
}

// Where things lie in a machine's initial file system.
const (
	InitPath    = "/init"
	RunnerPath  = "/cofferdam-runner"
	ModulesPath = "/modules" // drivers, named so that each comes after those that it needs
	// CryptModulesPath has likewise those that only encrypted scratch needs. They are loaded when that is asked for: each costs time.
	CryptModulesPath = "/modules-crypt"
)
