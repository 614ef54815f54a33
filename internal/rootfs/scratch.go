package rootfs

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// mountScratch puts scratch on the stage, and returns a hold on it by which it can only be asked how full it is.
func mountScratch(cfg Config) (*os.File, error) {
	if cfg.Scratch != nil {
		if err := attach(cfg.Scratch, stage); err != nil {
			return nil, err
		}
	} else {
		options := "mode=0755,size=" + strconv.FormatInt(cfg.ScratchSize, 10) + ",nr_inodes=" + strconv.FormatInt(cfg.ScratchFiles, 10)
		if err := unix.Mount("scratch", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Open(stage, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "scratch"), nil
}
