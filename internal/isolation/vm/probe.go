package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/kvm"
)

// tunDevice makes network devices, each in the namespace of who asks, which needs a capability there: the kernel's documentation recommends mode 0666 (networking/tuntap.rst).
const tunDevice = "/dev/net/tun"

// Probe says whether a level's parts are there and run, and which they are. Whether a sandbox comes up, only one shows.
func Probe(ctx context.Context, folder, level string) (detail string, err error) {
	about, err := boot.ReadAbout(folder)
	if err != nil {
		return "", err
	}
	for name, want := range about.SHA256 {
		if err := checkDigest(filepath.Join(folder, name), want); err != nil {
			return "", fault.New(fault.Unsupported, "%s is not what was built", filepath.Join(folder, name)).WithHint("%s", Remedy).Because(err)
		}
	}
	driver := choose(about)
	version, err := driver.version(ctx)
	program := driver.name() + " " + version
	if level == Level {
		_, program, err = pick(ctx, folder, about)
	}
	if err != nil {
		return "", fault.New(fault.Unsupported, "%v", err).WithHint("%s", Remedy)
	}
	if err := needTun(); err != nil {
		return "", err
	}
	detail = fmt.Sprintf("%s, machine %s, Linux %s", program, about.Machine, about.Kernel)
	if level == LevelEmulated {
		return detail + "; " + Emulated, nil
	}
	if err := kvm.Try(ctx); err != nil {
		return "", fault.New(fault.Unsupported, "%v", err).WithHint("%s", kvmRemedy)
	}
	return detail + ", KVM", kvm.OpenToGroup()
}

// kvmRemedy says what to do where KVM does not deliver.
const kvmRemedy = kvm.Remedy + "; or choose --isolation gvisor, or vm-emulated, which is labelled"

// needKVM refuses level vm where KVM does not execute on the processor.
func needKVM(ctx context.Context) error {
	if err := kvm.Try(ctx); err != nil {
		return fault.New(fault.Unsupported, "isolation level %s is not possible on this machine: %v", Level, err).WithHint("%s", kvmRemedy)
	}
	return kvm.OpenToGroup()
}

// needTun refuses where this user cannot make the machine's network device.
func needTun() error {
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return fault.New(fault.Unsupported, "the machine's network needs %s, which cannot be opened", tunDevice).
			WithHint("have root run: modprobe tun; chmod 666 %s  (making a device there still needs rights in a network namespace); or choose --isolation gvisor", tunDevice).Because(err)
	}
	return f.Close()
}

func checkDigest(path, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		return errors.New("its digest is " + got)
	}
	return nil
}
