package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// bzImage puts a payload where a kernel has it.
func bzImage(payload []byte, size int) []byte {
	const sectors = 4
	image := make([]byte, (sectors+1)*sector)
	image[setupSectors] = sectors
	copy(image[setupMagic:], "HdrS")
	binary.LittleEndian.PutUint32(image[payloadOffset:], 16)
	binary.LittleEndian.PutUint32(image[payloadLength:], uint32(len(payload)+4))
	image = append(append(image, make([]byte, 16)...), payload...)
	return append(binary.LittleEndian.AppendUint32(image, uint32(size)), "behind"...)
}

// elf is what looks like a kernel: parts of it repeat themselves.
func elf() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	data := []byte("\x7fELF")
	for len(data) < 9<<20 { // more than one block of LZ4's legacy format
		if n := r.IntN(400); r.IntN(2) == 0 {
			for range n {
				data = append(data, byte(r.Uint32()))
			}
		} else {
			at := r.IntN(len(data))
			data = append(data, data[at:min(at+n, len(data))]...)
		}
	}
	return append(data, make([]byte, 4096)...)
}

func TestUncompressed(t *testing.T) {
	want := elf()
	if got, err := uncompressed(want); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a kernel that is not compressed: %d bytes, %v", len(got), err)
	}
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := uncompressed(bzImage(w.EncodeAll(want, nil), len(want))); err != nil || !bytes.Equal(got, want) {
		t.Errorf("zstd: %d bytes, %v", len(got), err)
	}
	testenv.Need(t, "tool:lz4")
	lz4 := exec.Command("lz4", "-l", "-9", "-c")
	lz4.Stdin = bytes.NewReader(want)
	payload, err := lz4.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := uncompressed(bzImage(payload, len(want))); err != nil || !bytes.Equal(got, want) {
		t.Errorf("LZ4: %d bytes, %v", len(got), err)
	}
	if _, err := uncompressed(bzImage(payload, len(want)-1)); err == nil {
		t.Error("a payload that is longer than it says is taken")
	}
	if _, err := uncompressed(bzImage(payload[:len(payload)/2], len(want))); err == nil {
		t.Error("half a payload is taken")
	}
}

// FuzzUncompressed wants an error or an ELF file, never a panic.
func FuzzUncompressed(f *testing.F) {
	// Four literals, then a copy of four bytes from four before, then a last literal.
	block := []byte{0x40, 0x7f, 'E', 'L', 'F', 4, 0, 0x10, 'x'}
	payload := append([]byte{0x02, 0x21, 0x4c, 0x18, byte(len(block)), 0, 0, 0}, block...)
	if got, err := uncompressed(bzImage(payload, 9)); err != nil || string(got) != "\x7fELF\x7fELFx" {
		f.Fatalf("%q, %v", got, err)
	}
	f.Add(bzImage(payload, 9))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > payloadOffset && len(data) > 3000 {
			return // the interesting ones are small
		}
		if got, err := uncompressed(data); err == nil && !isELF(got) {
			t.Errorf("%d bytes that are no kernel", len(got))
		}
	})
}
