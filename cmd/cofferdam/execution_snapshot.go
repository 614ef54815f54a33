package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/image"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/snapshot"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// keepsake is what a run has to do with snapshots.
type keepsake struct {
	from   *snapshot.Snapshot // that it continues; nil for none
	dir    string             // where that lies
	name   snapshot.Name      // under which it is to be kept; empty for none
	place  string             // where that will lie
	wanted bool               // its command has ended with 0, so that the snapshot is wanted
}

func (a *app) snapshots() (*snapshot.Store, error) { return snapshot.Open(a.state) }

// openSnapshot finds the snapshot that --from names, and takes from it what flags would say otherwise.
func (a *app) openSnapshot(f *runFlags) (k keepsake, err error) {
	if f.snapshot == "" && f.from == "" {
		return k, nil
	}
	store, err := a.snapshots()
	if err != nil {
		return k, err
	}
	if f.snapshot != "" {
		if k.name, err = snapshot.ParseName(f.snapshot); err != nil {
			return k, flagError("snapshot", err)
		}
		if err := store.Free(k.name); err != nil {
			return k, err
		}
	}
	if f.from == "" {
		return k, nil
	}
	name, err := snapshot.ParseName(f.from)
	if err != nil {
		return k, flagError("from", err)
	}
	from, err := store.Find(name)
	if err != nil {
		return k, err
	}
	k.from, k.dir = &from, store.Dir(name)
	return k, f.takeFrom(from)
}

// takeFrom refuses flags that say what a snapshot says already, and takes its level.
func (f *runFlags) takeFrom(from snapshot.Snapshot) error {
	for flag, given := range map[string]bool{"workspace": f.workspace != "", "mount": len(f.mounts) > 0, "image": f.image != "", "rootfs": f.rootfs != ""} {
		if given {
			return fault.New(fault.Invalid, "--%s and --from: the folder, the mounts and the root are those of the snapshot", flag).WithHint("leave --%s out; cofferdam snapshot inspect %s says what it has", flag, from.Name)
		}
	}
	if f.isolation != "" && f.isolation != from.Isolation {
		return fault.New(fault.Invalid, "the snapshot %s was made at level %s, and goes on at no other", from.Name, from.Isolation).WithHint("leave --isolation out")
	}
	f.isolation = from.Isolation
	return nil
}

// workspace is the folder of the snapshot's run.
func (k keepsake) workspace() (workspaceChoice, error) {
	w := workspaceChoice{dir: k.from.Workspace}
	if w.dir == "" {
		return w, nil
	}
	mode, err := policy.ParseWorkspaceMode(k.from.Mode)
	if err != nil {
		return w, err
	}
	if info, err := os.Stat(w.dir); err != nil || !info.IsDir() {
		return w, fault.New(fault.NotFound, "the folder %s of the snapshot %s is not there any more", inert(w.dir, 200), k.from.Name).WithHint("its changes could not be taken; make it again from another folder").Because(err)
	}
	w.mode = &mode
	return w, nil
}

// checkPolicy refuses a run whose policy wants another sandbox than the snapshot's, or whose level has no snapshots.
func (k keepsake) checkPolicy(s settled, images string) error {
	if (k.name != "" || k.from != nil) && !s.policy.Isolation().HasOwnMachine() {
		return fault.New(fault.Unsupported, "at level %s there are no snapshots: only a virtual machine has all of its state in one place", s.policy.Isolation()).
			WithHint("choose --isolation vm-emulated or vm, with --image NAME; or keep what is to last in a folder: --workspace .:rw")
	}
	if k.from == nil {
		return nil
	}
	if s.workspace.dir != "" && s.mode.String() != k.from.Mode {
		return fault.New(fault.Conflict, "policy wants the folder %s, and the snapshot %s has it %s", s.mode, k.from.Name, k.from.Mode).WithHint("make a snapshot under this policy")
	}
	for _, m := range s.policy.Mounts() {
		if m.Mode == policy.ReadWrite || !slices.Contains(k.from.Mounts, snapshot.Mount{Source: m.Source, Target: m.Target}) {
			return fault.New(fault.Conflict, "policy mounts %s at %s, which the snapshot %s has not", m.Source, m.Target, k.from.Name).WithHint("make a snapshot under this policy")
		}
	}
	if ref := s.policy.Image(); ref != "" {
		store, err := image.Open(images)
		if err != nil {
			return err
		}
		i, err := store.Find(ref)
		if err != nil {
			return err
		}
		if i.Digest != k.from.Image {
			return fault.New(fault.Conflict, "policy names the image %s, and the snapshot %s was made of another", ref, k.from.Name).WithHint("make a snapshot under this policy")
		}
	}
	return nil
}

// fit takes the limits that the machine has from the snapshot, where none were asked for. Others are refused.
func (k keepsake) fit(asked policy.Resources, r *policy.Resources) error {
	if k.from == nil {
		return nil
	}
	for _, l := range []struct {
		flag        string
		asked, have int64
		use         *int64
	}{{"memory", asked.Memory, k.from.Limits.Memory, &r.Memory}, {"disk", asked.Disk, k.from.Limits.Disk, &r.Disk}} {
		if l.asked != 0 && l.asked != l.have {
			return fault.New(fault.Conflict, "the snapshot %s has --%s %s, and its machine cannot be of another size", k.from.Name, l.flag, policy.FormatSize(l.have)).WithHint("leave --%s out", l.flag)
		}
		*l.use = l.have
	}
	if asked.Files != 0 && asked.Files != k.from.Limits.Files {
		return fault.New(fault.Conflict, "the snapshot %s has --files %d, and its machine cannot be of another size", k.from.Name, k.from.Limits.Files).WithHint("leave --files out")
	}
	r.Files = k.from.Limits.Files
	if asked.MilliCPUs == 0 {
		r.MilliCPUs = k.from.Limits.MilliCPUs
	}
	return nil
}

// addSnapshot puts into the specification which snapshot it continues, and where it is kept.
func (e *execution) addSnapshot(spec *call.Create) error {
	spec.From = e.keepsake.dir
	if e.keepsake.name == "" {
		return nil
	}
	r := e.record()
	about := snapshot.Snapshot{
		Name: e.keepsake.name, Run: e.id, Command: r.Command, Isolation: r.Isolation, Workspace: r.Workspace, Image: r.Image, RootFS: spec.RootFS,
		Limits: snapshot.Limits{MilliCPUs: spec.Limits.MilliCPUs, Memory: spec.Limits.Memory, Disk: spec.Limits.Disk, Files: spec.Limits.Files},
		Config: e.root.image.Config, Bundle: e.root.bundle,
	}
	if r.Workspace != "" {
		about.Mode = r.Mode
	}
	if r.Image != "" {
		about.RootFS = ""
	}
	for _, m := range spec.Mounts {
		about.Mounts = append(about.Mounts, snapshot.Mount{Source: m.Source, Target: m.Target})
	}
	if from := e.keepsake.from; from != nil {
		about.From, about.RootFS, about.Mounts = from.Name, from.RootFS, from.Mounts
	}
	store, err := e.app.snapshots()
	if err != nil {
		return err
	}
	making, err := store.Begin(about)
	if err != nil {
		return err
	}
	e.keepsake.place = store.Dir(e.keepsake.name)
	spec.Snapshot = &call.Snapshot{Making: making, Dir: e.keepsake.place}
	return nil
}

// decide tells the supervisor whether the snapshot is wanted, now that the command has ended: only where it ended by itself, with 0.
func (e *execution) decide(exit frame.Exit, err error) {
	if e.keepsake.name == "" {
		return
	}
	e.keepsake.wanted = err == nil && exit == frame.Exit{} && e.why() == "" && e.signals.stopped == 0
	_ = e.client.Tell(call.Request{Keep: &call.Keep{Wanted: e.keepsake.wanted}}) // a supervisor that is gone keeps nothing, which is told
}

// keptAt is where the snapshot lies that was made; nothing if there is none.
func (e *execution) keptAt() string {
	if k := e.ended.Kept; k == nil || k.Error != "" {
		return ""
	}
	return e.keepsake.place
}

// keepsakeEnd says what came of the snapshot: what to add to the code and the record.
func (e *execution) keepsakeEnd(code int) (int, string) {
	k := e.keepsake
	switch {
	case k.name == "":
		return code, ""
	case !k.wanted:
		e.say.note(fmt.Sprintf("no snapshot was made, since the command did not end with 0: %s stays free", k.name))
		return code, "; not kept"
	case e.ended.Kept == nil:
		e.say.trouble(errors.New("the snapshot was not made: the sandbox ended before"), "")
		return exitOurs, "; not kept"
	case e.ended.Kept.Error != "":
		e.say.trouble(fmt.Errorf("the snapshot was not made: %s", inert(e.ended.Kept.Error, 500)), "")
		return exitOurs, "; not kept"
	}
	e.say.note(fmt.Sprintf("kept as %s, %s: go on from there with: cofferdam run --from %s -- COMMAND", k.name, audit.SizeWords(e.ended.Kept.Bytes), k.name))
	return code, "; kept as snapshot " + string(k.name)
}

// continues is origin for a sentence.
func (e *execution) continues() string {
	if origin := e.keepsake.origin(); origin != "" {
		return ";" + origin
	}
	return ""
}

// origin says for the record which snapshot a run continues.
func (k keepsake) origin() string {
	if k.from == nil {
		return ""
	}
	return fmt.Sprintf(" from snapshot %s of run %s", k.from.Name, k.from.Run)
}
