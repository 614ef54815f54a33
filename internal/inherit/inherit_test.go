package inherit

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCloseOthers(t *testing.T) {
	ours, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := unix.Dup(int(ours.Fd())) // without close-on-exec, as inherited ones are
	if err != nil {
		t.Fatal(err)
	}
	if err := CloseOthers(); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(theirs), unix.F_GETFD, 0); err == nil {
		t.Error("an inherited descriptor is still open")
	}
	if _, err := ours.Stat(); err != nil {
		t.Errorf("our own was closed: %v", err)
	}
}
