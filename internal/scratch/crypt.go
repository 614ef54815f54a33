package scratch

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keySize is what fscrypt takes for a master key (FSCRYPT_MAX_KEY_SIZE); AES-256-XTS uses 64 bytes that the kernel derives of it.
const keySize = unix.FSCRYPT_MAX_KEY_SIZE

// addKey gives the file system of dir a fresh random key and returns its identifier, which is a hash. The key was drawn here and is forgotten here: after
// this only the kernel has it (Documentation/filesystems/fscrypt.rst, FS_IOC_ADD_ENCRYPTION_KEY).
func addKey(dir *os.File) (id unix.FscryptKeySpecifier, err error) {
	const header = int(unsafe.Sizeof(unix.FscryptAddKeyArg{}))
	// A page of its own: locked, so that it reaches no swap; in no core dump, whatever happens in these microseconds; and never moved or copied by Go.
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		return id, fmt.Errorf("make room for a key: %w", err)
	}
	defer func() {
		clear(page)
		err = errors.Join(err, unix.Munmap(page))
	}()
	if err := errors.Join(unix.Mlock(page), unix.Madvise(page, unix.MADV_DONTDUMP)); err != nil {
		return id, fmt.Errorf("lock a key into memory: %w", err)
	}
	arg := (*unix.FscryptAddKeyArg)(unsafe.Pointer(&page[0]))
	arg.Key_spec.Type, arg.Raw_size = unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER, keySize
	_, _ = rand.Read(page[header : header+keySize]) // crypto/rand.Read never fails since Go 1.24
	if err := control(dir, unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&page[0])); err != nil {
		return id, fmt.Errorf("add the key: %w", err)
	}
	return arg.Key_spec, nil
}

// encrypt has everything that is made in an empty directory from now on be encrypted under a key.
func encrypt(dir *os.File, id unix.FscryptKeySpecifier) error {
	policy := unix.FscryptPolicyV2{
		Version: unix.FSCRYPT_POLICY_V2, Contents_encryption_mode: unix.FSCRYPT_MODE_AES_256_XTS, Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS,
		Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_32,
	}
	copy(policy.Master_key_identifier[:], id.U[:])
	if err := control(dir, unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&policy)); err != nil {
		return fmt.Errorf("encrypt a directory: %w", err)
	}
	return nil
}

// removeKey has the kernel wipe the key. An error also if something encrypted under it is still open, so that the kernel keeps a derived key for that.
func removeKey(dir *os.File, id unix.FscryptKeySpecifier) error {
	arg := unix.FscryptRemoveKeyArg{Key_spec: id}
	if err := control(dir, unix.FS_IOC_REMOVE_ENCRYPTION_KEY, unsafe.Pointer(&arg)); err != nil {
		return fmt.Errorf("remove the key: %w", err)
	}
	if arg.Removal_status_flags != 0 {
		return fmt.Errorf("remove the key: something under it is still in use (flags %#x)", arg.Removal_status_flags)
	}
	return nil
}

// keyAbsent asks the kernel whether it has no part of the key.
func keyAbsent(dir *os.File, id unix.FscryptKeySpecifier) (bool, error) {
	arg := unix.FscryptGetKeyStatusArg{Key_spec: id}
	if err := control(dir, unix.FS_IOC_GET_ENCRYPTION_KEY_STATUS, unsafe.Pointer(&arg)); err != nil {
		return false, fmt.Errorf("ask for the key: %w", err)
	}
	return arg.Status == unix.FSCRYPT_KEY_STATUS_ABSENT, nil
}

// shutDown forbids a file system all further writing, of what waits in memory too: it is about to be thrown away.
func shutDown(dir *os.File) error {
	const (
		request   = 0x8004587d // FS_IOC_SHUTDOWN (include/uapi/linux/fs.h of Linux 6.18; before that EXT4_IOC_SHUTDOWN, the same number)
		withoutIO = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	how := uint32(withoutIO)
	return control(dir, request, unsafe.Pointer(&how))
}

func control(f *os.File, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
