// Command mkvm makes the folder from which virtual machines are started, of a kernel and of our own programs: vmlinux, the initial file system, and a description of both.
// It is run by scripts/vm.sh.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/guest/initramfs"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkvm:", err)
		if hint := fault.HintOf(err); hint != "" {
			fmt.Fprintln(os.Stderr, "mkvm:", hint)
		}
		os.Exit(1)
	}
}

func run(args []string) error {
	var about boot.About
	flags := flag.NewFlagSet("mkvm", flag.ContinueOnError)
	kernel := flags.String("kernel", "", "the kernel: vmlinuz or vmlinux")
	modules := flags.String("modules", "", "the kernel's directory of modules; none if all drivers are built in")
	programs := flags.String("programs", "", "the directory with cofferdam-guest and cofferdam-runner")
	out := flags.String("out", "", "the folder to make")
	libraries := flags.String("libraries", "", "where QEMU's libraries are, if not where the system has its own; separated by colons")
	firmware := flags.String("firmware", "", "where QEMU's firmware is; separated by colons")
	flags.StringVar(&about.Kernel, "release", "", "the kernel's release")
	flags.StringVar(&about.Machine, "machine", "", "q35 or microvm")
	flags.StringVar(&about.QEMU, "qemu", "", "path of the emulator")
	if err := flags.Parse(args); err != nil {
		return err
	}
	about.Libraries, about.Firmware = split(*libraries), split(*firmware)
	vmlinux, err := os.ReadFile(*kernel)
	if err != nil {
		return err
	}
	if vmlinux, err = uncompressed(vmlinux); err != nil {
		return fmt.Errorf("%s: %w", *kernel, err)
	}
	c := initramfs.Contents{Init: filepath.Join(*programs, "cofferdam-guest"), Runner: filepath.Join(*programs, "cofferdam-runner")}
	if *modules != "" {
		if c.Modules, err = initramfs.Resolve(*modules, initramfs.Drivers()); err != nil {
			return err
		}
		both, err := initramfs.Resolve(*modules, append(initramfs.Drivers(), initramfs.CryptDrivers()...))
		if err != nil {
			return err
		}
		c.Crypt = both[len(c.Modules):] // what comes later in the list comes later in the order
	}
	var initial bytes.Buffer
	if err := initramfs.Build(&initial, c); err != nil {
		return err
	}
	return publish(*out, about, map[string][]byte{boot.KernelName: vmlinux, boot.InitramName: initial.Bytes()})
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ':' })
}

// publish writes the files and then their description, which is read first by whoever uses them.
func publish(dir string, about boot.About, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	about.SHA256 = map[string]string{}
	for name, data := range files {
		digest := sha256.Sum256(data)
		about.SHA256[name] = hex.EncodeToString(digest[:])
		if err := replace(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	words, err := json.MarshalIndent(about, "", "  ")
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, boot.AboutName), append(words, '\n')); err != nil {
		return err
	}
	_, err = boot.ReadAbout(dir)
	return err
}

// replace puts a new file in the place of one that a machine may have open, unless they are the same.
func replace(path string, data []byte) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
		return nil
	}
	next := path + ".new"
	return errors.Join(os.WriteFile(next, data, 0o644), os.Rename(next, path))
}
