package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/guest/boot"
	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/netns"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/terminal"
)

// machineMemory is what every machine here has, in MiB, bare or not.
const machineMemory = 256

// machineGit is where git is, in machines too.
const machineGit = "/usr/bin/git"

// machineImage is the image that machines have, by its name.
const machineImage = "bench"

// emulated is what machines are started from: the folder with the kernel, and a small tree of programs, which is an image too.
type emulated struct {
	folder, root string
	about        boot.About
}

// emulated makes the image. Where there can be no machines it says so, and returns nothing.
func (b *bench) emulated(ctx context.Context) (*emulated, error) {
	m := &emulated{folder: filepath.Join(filepath.Dir(b.cofferdam), boot.FolderName), root: filepath.Join(b.dir, "machine")}
	if os.Getuid() != 0 {
		b.skip("level vm-emulated", "measured as root only")
		return nil, nil
	}
	var err error
	if m.about, err = boot.ReadAbout(m.folder); err == nil {
		_, err = vm.Probe(ctx, m.folder, vm.LevelEmulated)
	}
	if err != nil {
		b.skip("level vm-emulated", err.Error()+"; get what it needs with: make vm")
		return nil, nil
	}
	if _, err := os.Stat(m.root); err == nil {
		return m, nil // of another group
	}
	for _, program := range []string{echo()[0], "/bin/sh", machineGit} {
		if _, err := os.Stat(program); program == machineGit && err != nil {
			continue // what needs it says so
		}
		if err := plant(m.root, program); err != nil {
			return nil, err
		}
	}
	return m, m.build(ctx, b, b.environment())
}

// build makes the image in the store of an environment.
func (m *emulated) build(ctx context.Context, b *bench, env []string) error {
	build := exec.CommandContext(ctx, b.cofferdam, "image", "build", machineImage, "--quiet", "--from", m.root)
	build.Env = env
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("image build: %w: %s", err, firstLine(string(out)))
	}
	return nil
}

// run are cofferdam's words to run something in a machine on a folder.
func (m *emulated) run(b *bench, folder string, more ...string) []string {
	return append([]string{b.cofferdam, "run", "-q", "--isolation", vm.LevelEmulated, "--image", machineImage, "--memory", fmt.Sprintf("%dm", machineMemory), "--workspace", folder}, more...)
}

// bare is QEMU with the same kernel and board as a sandbox's, and nothing but a serial line. It has every hardware flag that package vm gives.
func (m *emulated) bare(initram, arguments string) []string {
	board := "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off"
	if m.about.Machine == "microvm" {
		board = "microvm,acpi=off,pit=on,pic=on,rtc=on,x-option-roms=off"
		arguments += " " + boot.SmallArguments
	}
	argv := []string{"env", "LD_LIBRARY_PATH=" + strings.Join(m.about.Libraries, ":"), m.about.QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-m", fmt.Sprintf("%dM", machineMemory), "-smp", "1", "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max", "-M", board,
		"-kernel", filepath.Join(m.folder, boot.KernelName), "-initrd", initram, "-append", "console=ttyS0 " + boot.KernelArguments + " tsc=reliable " + arguments,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"}
	for _, dir := range m.about.Firmware {
		argv = append(argv, "-L", dir)
	}
	return argv
}

// What sandboxes in machines are compared with.
const (
	bareName     = "bare QEMU, to the first line of init"
	bareEchoName = "bare QEMU, with `echo` as its first program"
)

// bareBoot starts a machine by itself, with the very initial file system of sandboxes. Under this name of its file their init says at once, in its first words, that it was
// not started as one.
func bareBoot(m *emulated) subject {
	return barely(bareName, m.bare(filepath.Join(m.folder, boot.InitramName), "rdinit=/."+boot.InitPath), "cofferdam-guest: ")
}

// bareEcho starts one that does what the sandbox is started for, and has no root but that initial file system.
func (b *bench) bareEcho(m *emulated) (subject, error) {
	initram, err := b.initramWith(m, echo()[0])
	return barely(bareEchoName, m.bare(initram, "rdinit="+echo()[0]+" -- "+echo()[1]), echo()[1]), err
}

// barely starts a machine by itself, until it says something.
func barely(name string, argv []string, text string) subject {
	return subject{name, func(ctx context.Context) ([]float64, error) {
		ctx, cancel := context.WithTimeout(ctx, levelTime)
		defer cancel()
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		began := time.Now()
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		err = awaitText(bufio.NewReader(out), text)
		took := milliseconds(time.Since(began))
		cancel() // what comes after it is nobody's
		_ = cmd.Wait()
		return []float64{took, took}, err
	}}
}

// machineRows measures level vm-emulated: sandboxes from nothing and from a pool, and machines that were prepared, by themselves: these are package vm's own, without gateway and
// records.
func machineRows(ctx context.Context, b *bench) (rows []row, err error) {
	m, err := b.emulated(ctx)
	if m == nil {
		return nil, err
	}
	image := []string{"--image", machineImage}
	if err := m.build(ctx, b, b.poolEnvironment(vm.LevelEmulated)); err != nil {
		return nil, err
	}
	p, err := b.openPool(ctx, vm.LevelEmulated, image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	bare, err := b.bareEcho(m)
	if err != nil {
		return nil, err
	}
	const preparedName = "a prepared machine by itself"
	run := m.run(b, b.workspace(), append([]string{"--"}, echo()...)...)
	usual := append([]string{b.cofferdam, "run", "-q", "--isolation", vm.LevelEmulated, "--workspace", b.workspace()}, append(append(image, "--"), echo()...)...)
	cold, rest, err := b.settle(takeTurns(ctx, b.rounds(8), []subject{
		{coldName, b.both(b.environment(), run...)}, {warmName, p.claiming(b.both(p.env, usual...))}, {preparedName, m.prepared}, bareBoot(m), bare,
	}))
	if err != nil {
		return nil, err
	}
	warm, ok1 := find(rest, warmName)
	own, ok2 := find(rest, preparedName)
	others := without(without(rest, warmName), preparedName)
	rows = startedRows("level vm-emulated, from nothing", cold, others, map[string]aim{bareName: atMost(1.15), bareEchoName: atMost(1.15)})
	if !ok1 || !ok2 {
		return rows, errors.New("no prepared machine was taken: see the line above")
	}
	rows = append(rows, startedRows("level vm-emulated, from a pool", warm, append([]series{cold}, others...), nil)...)
	answers, words := halves(own)
	first, _ := halves(cold)
	return append(rows,
		row{what: "level vm-emulated, " + preparedName + ": from the request to the runner's first answer", unit: "ms", ours: answers, others: []comparison{against(first, atMostAlone(80))}},
		row{what: "level vm-emulated, " + preparedName + ": from the request to the first byte of `echo`", unit: "ms", ours: words, others: []comparison{against(first, noAim())}},
	), nil
}

// preparedBase is the first of the user ids that prepared machines have on the host, one at a time.
const preparedBase = 0x77000000

func (m *emulated) specification(line string) call.Create {
	return call.Create{Run: "benchone", Level: vm.LevelEmulated, Hostname: "cofferdam", RootFS: m.root, Boot: line, UIDBase: preparedBase,
		Limits: call.Limits{Disk: machineMemory << 19, Memory: machineMemory << 20}}
}

// prepared takes a machine that was prepared: milliseconds until its runner has answered, and until the first byte of what is run.
func (m *emulated) prepared(ctx context.Context) (values []float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, levelTime)
	defer cancel()
	token, secret := terminal.NewToken()
	line, err := json.Marshal(frame.Boot{Control: netip.AddrPortFrom(netns.Gateway4, netns.ControlPort).String(), Token: secret})
	if err != nil {
		return nil, err
	}
	o := container.Options{IDs: container.PrivilegedIDs(preparedBase)}
	p, err := vm.Prepare(ctx, m.folder, m.specification(""), o)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	s, err := p.Finish(ctx, m.specification(string(line)), o)
	if err != nil {
		p.Discard()
		return nil, err
	}
	defer func() {
		s.Hurry()
		<-s.Done()
		s.Listeners.Close()
		_, left := s.Remains()
		err = errors.Join(err, left)
	}()
	l, err := net.FileListener(s.Listeners.TCP)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })() // ends the waiting
	conn, err := l.Accept()
	if err != nil {
		return nil, err
	}
	var first time.Duration
	said := writer(func(p []byte) error {
		if first == 0 && len(p) > 0 {
			first = time.Since(began)
		}
		return nil
	})
	session, err := terminal.Attach(ctx, conn, terminal.Options{Token: token, Stdout: said, Stderr: io.Discard, Start: frame.Start{Args: echo(), Dir: "/", Env: []string{}}})
	answered := time.Since(began)
	if err != nil {
		return nil, err
	}
	exit, err := session.Run(ctx)
	if err == nil && (exit.Code != 0 || first == 0) {
		err = fmt.Errorf("it ended with %+v", exit)
	}
	if err != nil {
		return nil, err
	}
	return []float64{milliseconds(answered), milliseconds(first)}, nil
}
