package vm

import (
	"os"
	"testing"

	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/kvm"
)

// TestMain lets the test binary be the children that the supervisor's program is.
func TestMain(m *testing.M) {
	switch os.Args[0] {
	case container.SetupName:
		container.Setup(nil)
		return
	case container.StewardName:
		container.Steward()
		return
	case insideName:
		inside()
		return
	case takenName:
		taken()
		return
	case kvm.Name:
		kvm.Child()
		return
	case UnpackName:
		Unpack()
		return
	}
	os.Exit(m.Run())
}
