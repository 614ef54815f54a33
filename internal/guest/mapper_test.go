package guest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestCryptTable holds the request against the kernel's own words (include/uapi/linux/dm-ioctl.h): sizes, places, numbers, and what the target is told.
func TestCryptTable(t *testing.T) {
	if unix.SizeofDmIoctl != 312 || unix.SizeofDmTargetSpec != 40 || unix.DM_DEV_CREATE != 0xc138fd03 || unix.DM_TABLE_LOAD != 0xc138fd09 || unix.DM_DEV_SUSPEND != 0xc138fd06 {
		t.Error("the structures or requests are not the kernel's")
	}
	seen := map[string]bool{}
	for range 3 {
		page := bytes.Repeat([]byte{0xa5}, os.Getpagesize())
		const size = 1<<30 + 4096 + 100 // the rest of a page is left out
		n, err := cryptTable(page, "/dev/vdc", size)
		if err != nil {
			t.Fatal(err)
		}
		words := func(at int) uint32 { return binary.NativeEndian.Uint32(page[at:]) }
		long := func(at int) uint64 { return binary.NativeEndian.Uint64(page[at:]) }
		for name, got := range map[string][2]uint64{
			"version": {uint64(words(0)), 4}, "minor": {uint64(words(4)), 0}, "data_size": {uint64(words(12)), uint64(n)}, "data_start": {uint64(words(16)), 312},
			"target_count": {uint64(words(20)), 1}, "flags": {uint64(words(28)), 1 << 15}, "sector_start": {long(312), 0}, "length": {long(320), (1<<30 + 4096) / 512}, "next": {uint64(words(332)), 0},
		} {
			if got[0] != got[1] {
				t.Errorf("%s is %d, want %d", name, got[0], got[1])
			}
		}
		if name, kind := unix.ByteSliceToString(page[48:176]), unix.ByteSliceToString(page[336:352]); name != "scratch" || kind != "crypt" {
			t.Errorf("device %q, target %q", name, kind)
		}
		if page[n-1] != 0 || page[n] != 0xa5 {
			t.Error("the request does not end where it says")
		}
		fields := strings.Fields(unix.ByteSliceToString(page[352:n]))
		if len(fields) != 7 {
			t.Fatalf("%q", fields)
		}
		key, err := hex.DecodeString(fields[1])
		fields[1] = "KEY"
		if got := strings.Join(fields, " "); err != nil || len(key) != 64 || got != "aes-xts-plain64 KEY 0 /dev/vdc 0 1 sector_size:4096" {
			t.Errorf("%d bytes of key, %v: %s", len(key), err, got)
		}
		if bytes.Contains(page, key) {
			t.Error("the key is left where it was drawn")
		}
		for _, half := range [][]byte{key[:32], key[32:]} {
			if seen[string(half)] {
				t.Error("a key was drawn before")
			}
			seen[string(half)] = true
		}
	}
	if _, err := cryptTable(make([]byte, os.Getpagesize()), "/dev/"+strings.Repeat("x", tableRoom), 4096); err == nil {
		t.Error("a name for which there is no room was taken")
	}
}

// TestSignature holds the first page of swap against what mkswap(8) writes.
func TestSignature(t *testing.T) {
	const size = 64 << 20
	page := signature(size)
	if len(page) != boot.SwapPage || string(page[boot.SwapPage-10:]) != "SWAPSPACE2" {
		t.Errorf("%d bytes, at their end %q", len(page), page[boot.SwapPage-10:])
	}
	testenv.Need(t, "tool:mkswap")
	file := filepath.Join(t.TempDir(), "swap")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkswap", "--pagesize", "4096", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	theirs, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const uuid, uuidEnd = 1024 + 12, 1024 + 28 // ours has none: nobody looks for it
	clear(theirs[uuid:uuidEnd])
	if !bytes.Equal(page, theirs[:boot.SwapPage]) {
		t.Error("mkswap writes another page")
	}
}
