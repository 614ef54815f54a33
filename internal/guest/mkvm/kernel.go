package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// maxKernel bounds an uncompressed kernel; Debian's has 60 MiB.
const maxKernel = 512 << 20

// Where a bzImage says what is in it (Documentation/arch/x86/boot.rst).
const (
	setupSectors  = 0x1f1
	setupMagic    = 0x202
	payloadOffset = 0x248
	payloadLength = 0x24c
	headerEnd     = 0x250
	sector        = 512
)

// uncompressed returns the ELF file of a kernel, which machines without firmware start, from that file itself or from a bzImage.
func uncompressed(kernel []byte) ([]byte, error) {
	if isELF(kernel) {
		return kernel, nil
	}
	if len(kernel) < headerEnd || string(kernel[setupMagic:setupMagic+4]) != "HdrS" {
		return nil, errors.New("it is neither an ELF file nor a bzImage")
	}
	start := (int(kernel[setupSectors])+1)*sector + int(binary.LittleEndian.Uint32(kernel[payloadOffset:]))
	length := int(binary.LittleEndian.Uint32(kernel[payloadLength:]))
	const sizeLen = 4 // behind the payload: its uncompressed size
	if start < 0 || length < sizeLen || start > len(kernel) || length > len(kernel)-start {
		return nil, errors.New("its payload lies outside of it")
	}
	payload := kernel[start : start+length-sizeLen]
	size := int(binary.LittleEndian.Uint32(kernel[start+length-sizeLen:]))
	if size > maxKernel {
		return nil, fmt.Errorf("it would be %d bytes long", size)
	}
	data, err := decompress(payload, size)
	if err != nil {
		return nil, err
	}
	if len(data) != size || !isELF(data) {
		return nil, fmt.Errorf("its payload has %d bytes, and was to be an ELF file of %d", len(data), size)
	}
	return data, nil
}

func isELF(data []byte) bool { return bytes.HasPrefix(data, []byte("\x7fELF")) }

func decompress(payload []byte, size int) ([]byte, error) {
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}):
		return lz4Legacy(payload[4:], size)
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxKernel), zstd.WithDecoderMaxWindow(maxKernel))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(payload, make([]byte, 0, size))
	}
	return nil, errors.New("its payload is compressed with neither LZ4 nor zstd")
}

// lz4Legacy reads blocks of LZ4's legacy frame format (lz4_Frame_format.md), as kernels are compressed with.
func lz4Legacy(in []byte, size int) ([]byte, error) {
	out := make([]byte, 0, size)
	for len(in) >= 4 {
		n := int(binary.LittleEndian.Uint32(in))
		if in = in[4:]; n > len(in) {
			return nil, errors.New("a block ends behind the payload")
		}
		var err error
		if out, err = lz4Block(out, in[:n], size); err != nil {
			return nil, err
		}
		in = in[n:]
	}
	return out, nil
}

var errLZ4 = errors.New("an LZ4 block is damaged")

// lz4Block appends what a block holds (lz4_Block_format.md), size bytes in all at most.
func lz4Block(out, in []byte, size int) ([]byte, error) {
	start := len(out)
	for len(in) > 0 {
		token := in[0]
		literals, rest, ok := lz4Length(int(token>>4), in[1:])
		if !ok || literals > len(rest) || len(out)+literals > size {
			return nil, errLZ4
		}
		out, in = append(out, rest[:literals]...), rest[literals:]
		if len(in) == 0 {
			return out, nil // the last sequence has literals only
		}
		if len(in) < 2 {
			return nil, errLZ4
		}
		back := int(binary.LittleEndian.Uint16(in))
		match, rest, ok := lz4Length(int(token&15), in[2:])
		match += 4 // the least
		if !ok || back == 0 || back > len(out)-start || len(out)+match > size {
			return nil, errLZ4
		}
		for range match { // what is copied may be what is being written
			out = append(out, out[len(out)-back])
		}
		in = rest
	}
	return out, nil
}

// lz4Length reads the rest of a length of which a token has the first four bits.
func lz4Length(n int, in []byte) (length int, rest []byte, ok bool) {
	if n < 15 {
		return n, in, true
	}
	for i, b := range in {
		if n += int(b); b < 255 {
			return n, in[i+1:], true
		}
	}
	return 0, nil, false
}
