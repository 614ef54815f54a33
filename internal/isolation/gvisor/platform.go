package gvisor

import (
	"context"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/isolation/kvm"
)

// The platforms: how gVisor's kernel has the programs inside run.
const (
	Systrap = "systrap" // in processes of the host whose system calls are caught; what a specification means that names none
	KVM     = "kvm"     // in a virtual machine without a kernel of its own, on the processor's own virtualisation
)

// kvmRemedy says what to do where the platform KVM cannot be had.
const kvmRemedy = kvm.Remedy + "; or leave out --gvisor-platform (in a policy: platform), for systrap needs none of it"

// devices are the host's device files that runsc opens for a platform. It refuses a platform that this machine does not deliver, and never chooses another.
func devices(ctx context.Context, platform string) ([]string, error) {
	switch platform {
	case "", Systrap:
		return nil, nil
	case KVM:
		if err := ProbeKVM(ctx); err != nil {
			return nil, err
		}
		return []string{kvm.Device}, nil
	}
	return nil, fault.New(fault.Invalid, "gVisor has no platform %.20q here", platform).WithHint("write one of: %s, %s", Systrap, KVM)
}

// ProbeKVM says whether gVisor's platform KVM can be had: whether the processor executes what runs in a virtual machine, and somebody other than root may ask for
// one. gVisor takes a device that opens for one that works, and where instructions are imitated its kernel hangs or dies on the way up.
func ProbeKVM(ctx context.Context) error {
	if err := kvm.Try(ctx); err != nil {
		return fault.New(fault.Unsupported, "gVisor's platform %s is not possible on this machine: %v", KVM, err).WithHint("%s", kvmRemedy)
	}
	return kvm.OpenToGroup()
}
