package boot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestReadAbout(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadAbout(dir); fault.KindOf(err) != fault.Unsupported || fault.HintOf(err) != "make vm" {
		t.Errorf("without a folder: %v", err)
	}
	for text, ok := range map[string]bool{
		`{"kernel":"6.1","machine":"q35","qemu":"/q","firmware":[],"sha256":{"vmlinux":"a","initramfs.cpio":"b"}}`:          true,
		`{"kernel":"6.1","machine":"q35","qemu":"/q","firmware":[],"sha256":{"vmlinux":"a"}}`:                               false,
		`{"kernel":"6.1","machine":"pc","qemu":"/q","firmware":[],"sha256":{"vmlinux":"a","initramfs.cpio":"b"}}`:           false,
		`{"kernel":"6.1","machine":"microvm","firmware":[],"sha256":{"vmlinux":"a","initramfs.cpio":"b"}}`:                  false,
		`{"kernel":"6.1","machine":"microvm","qemu":"/q","x":1,"firmware":[],"sha256":{"vmlinux":"a","initramfs.cpio":""}}`: false,
		``: false,
	} {
		if err := os.WriteFile(filepath.Join(dir, AboutName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := ReadAbout(dir); (err == nil) != ok {
			t.Errorf("%s: %+v, %v", text, a, err)
		}
	}
}
