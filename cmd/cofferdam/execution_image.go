package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/image"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// root is the file system that the sandbox starts from, where that is not this machine's.
type root struct {
	image  image.Image
	held   *os.File // keeps the image from being removed
	bundle bool     // it has the list of certificate authorities, see bundleIn; looked at before the gateway confines itself
}

// letGo ends the hold.
func (r root) letGo() {
	if r.held != nil {
		_ = r.held.Close() // nothing is in it
	}
}

// openImage finds the image that policy or flags name, and holds it for as long as this process lives.
func (e *execution) openImage() error {
	if from := e.keepsake.from; from != nil { // which has the files itself
		e.root.image.Config, e.root.bundle = from.Config, from.Bundle
		return nil
	}
	ref := e.settled.policy.Image()
	if ref == "" {
		e.root.bundle = e.flags.rootfs != "" && bundleIn(e.flags.rootfs)
		return nil
	}
	if e.flags.rootfs != "" {
		return fault.New(fault.Invalid, "the policy names the image %s, and --rootfs another root", ref).WithHint("leave one of them out")
	}
	images, err := image.Open(e.app.imagesDir())
	if err != nil {
		return err
	}
	if e.root.image, err = images.Find(ref); err != nil {
		return err
	}
	if e.root.held, err = e.root.image.Hold(); err != nil {
		return err
	}
	if u := e.root.image.Config.User; u != "" && !slices.Contains([]string{"0", "root", "0:0", "root:root"}, u) {
		e.settled.notes = append(e.settled.notes, fmt.Sprintf("the image asks for the user %s; the command runs as the sandbox's root, which is nobody on this machine", inert(u, 60)))
	}
	e.root.bundle = bundleIn(e.root.image.Tree)
	return nil
}

// bundleIn says whether a tree has the list of certificate authorities where runtimes are pointed to. No link leads out of it.
func bundleIn(tree string) bool {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return false // whoever uses the tree says so
	}
	defer root.Close()
	info, err := root.Stat(strings.TrimPrefix(bundle, "/"))
	return err == nil && info.Mode().IsRegular()
}

// command is what the image starts by itself; empty: it says nothing.
func (r root) command() []string {
	return slices.Concat(r.image.Config.Entrypoint, r.image.Config.Cmd)
}

// ownSystem says whether the system inside is this machine's.
func (e *execution) ownSystem() bool {
	return e.root.held == nil && e.flags.rootfs == "" && e.keepsake.from == nil
}

// addRoot puts the root into the specification.
func (e *execution) addRoot(spec *call.Create) error {
	switch {
	case e.keepsake.from != nil: // it has its own
	case e.root.held != nil:
		spec.RootFS, spec.RootDisk = e.root.image.Tree, e.root.image.Disk
	case e.flags.rootfs != "":
		dir, err := filepath.Abs(e.flags.rootfs)
		if err != nil {
			return fault.New(fault.Invalid, "cannot use --rootfs %s", e.flags.rootfs).Because(err)
		}
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return fault.New(fault.Invalid, "--rootfs %s is not a directory", e.flags.rootfs).Because(err)
		}
		spec.RootFS = dir
	case e.settled.policy.Isolation().HasOwnMachine():
		return fault.New(fault.Invalid, "level %s needs an image: a virtual machine cannot have this machine's directories as its root", e.settled.policy.Isolation()).
			WithHint("make one with: cofferdam image build default --recipe default  and add --image default")
	}
	return nil
}

// hasBundle says whether the list of certificate authorities is where runtimes are pointed to.
func (e *execution) hasBundle() bool {
	if !e.ownSystem() {
		return e.root.bundle
	}
	_, err := os.Stat(bundle)
	return err == nil
}
