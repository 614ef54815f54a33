package guest

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
)

// reseed mixes a seed into the kernel's random number generator and has it forget what it had drawn from in advance (random(4)), then overwrites it.
// Until then, copies of one machine draw the same.
func reseed(seed *[boot.SeedSize]byte) error {
	defer clear(seed[:])
	device, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("seed the kernel: %w", err)
	}
	defer device.Close()
	// struct rand_pool_info of linux/random.h: how many bits are credited, how many bytes follow.
	pool := binary.NativeEndian.AppendUint32(nil, boot.SeedSize*8)
	pool = binary.NativeEndian.AppendUint32(pool, boot.SeedSize)
	pool = append(pool, seed[:]...)
	defer clear(pool)
	for _, step := range []struct {
		request  uintptr
		argument unsafe.Pointer
	}{{unix.RNDADDENTROPY, unsafe.Pointer(&pool[0])}, {unix.RNDRESEEDCRNG, nil}} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), step.request, uintptr(step.argument)); errno != 0 {
			return fmt.Errorf("seed the kernel: %w", errno)
		}
	}
	return nil
}

func setClock(now time.Time) error {
	t := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &t); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}
