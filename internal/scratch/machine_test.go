package scratch

import (
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/receipt"
)

// TestForMachine makes the disk of a machine, which has no name and gets none, hands it out, and looks for it when everybody has let go, and while somebody has not.
func TestForMachine(t *testing.T) {
	dir := t.TempDir()
	const size = 8 << 20
	s, err := ForMachine(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Disk()
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Disk()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.WriteAt([]byte("x"), size-1); err != nil {
		t.Error(err)
	}
	var info unix.Stat_t
	if err := unix.Fstat(int(second.Fd()), &info); err != nil || info.Size != size || info.Nlink != 0 || info.Blocks*512 < size || info.Mode&0o777 != 0o600 {
		t.Errorf("size %d, %d links, %d blocks reserved, mode %o; %v", info.Size, info.Nlink, info.Blocks, info.Mode, err)
	}
	named := dir + "/name"
	if err := unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(first.Fd())), unix.AT_FDCWD, named, unix.AT_SYMLINK_FOLLOW); err == nil {
		t.Error("the file got a name")
	}
	if _, err := s.Mount(-1); err == nil {
		t.Error("a machine's disk was handed out as a mount")
	}
	_ = second.Close() // nothing to keep
	held := &Scratch{file: s.file}
	if s.file, err = held.Disk(); err != nil { // the two stand for two supervisors
		t.Fatal(err)
	}
	items, err := held.Erase(10 * time.Millisecond)
	if err == nil || len(receipt.Problems(items)) != 1 || len(receipt.Names(items)) != 0 {
		t.Errorf("control: while somebody has it open: %+v, %v", items, err)
	}
	_ = first.Close() // the machine ends
	items, err = s.Erase(time.Second)
	if err != nil || len(items) != 3 {
		t.Fatalf("%+v, %v", items, err)
	}
	for i, want := range []struct {
		what   string
		result receipt.Result
	}{{"scratch key", receipt.NotObserved}, {"scratch disk", receipt.Gone}, {"scratch memory", receipt.NotObserved}} {
		if items[i].What != want.what || items[i].Checked != want.result || items[i].How == "" {
			t.Errorf("%+v, want %+v", items[i], want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestForMachineRefused has no place, or none that is large enough.
func TestForMachineRefused(t *testing.T) {
	if s, err := ForMachine(t.TempDir(), 1<<60); err == nil || s != nil || fault.HintOf(err) == "" {
		t.Errorf("more than the disk has: %v, hint %q", err, fault.HintOf(err))
	}
	if _, err := ForMachine(t.TempDir()+"/absent", 4096); fault.HintOf(err) == "" {
		t.Errorf("no directory: %v", err)
	}
	if _, err := (&Scratch{}).Disk(); err == nil {
		t.Error("scratch in memory was handed out as a disk")
	}
}
