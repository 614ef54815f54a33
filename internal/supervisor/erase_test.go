package supervisor

import (
	"errors"
	"slices"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/receipt"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestMakeScratch makes scratch where it can be made, and refuses it elsewhere: nothing weaker takes its place.
func TestMakeScratch(t *testing.T) {
	testenv.Need(t, "root", "tool:mke2fs")
	limits := call.Limits{Disk: 16 << 20, Files: 1024}
	for name, c := range map[string]struct {
		spec call.Create
		made bool
		kind fault.Kind // of the refusal
	}{
		"default":   {call.Create{Level: "container", Limits: limits}, true, 0},
		"memory":    {call.Create{Level: "gvisor", Scratch: "memory", Limits: limits}, true, 0},
		"encrypted": {call.Create{Level: "gvisor", Scratch: "encrypted", ScratchDir: t.TempDir(), Limits: limits}, true, 0},
		"machine":   {call.Create{Level: "vm-emulated", Scratch: "memory", Limits: limits}, false, 0},

		"machine, encrypted": {call.Create{Level: "vm", Scratch: "encrypted", ScratchDir: t.TempDir(), Limits: limits}, true, 0},
		"machine, nowhere":   {call.Create{Level: "vm", Scratch: "encrypted", ScratchDir: "here", Limits: limits}, false, fault.Invalid},
		"unknown":            {call.Create{Level: "container", Scratch: "disk", Limits: limits}, false, fault.Invalid},
		"nowhere":            {call.Create{Level: "container", Scratch: "encrypted", ScratchDir: "here", Limits: limits}, false, fault.Invalid},
	} {
		b := &built{spec: c.spec}
		err := b.makeScratch()
		if refused := c.kind != 0; (b.scratch != nil) != c.made || (err != nil) != refused || refused && fault.KindOf(err) != c.kind {
			t.Errorf("%s: made %v, %v", name, b.scratch != nil, err)
		}
		if err := b.dropScratch(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// ghost is a box that ended in some way.
type ghost struct {
	box
	gone []string
	err  error
}

func (g ghost) Remains() ([]string, error) { return g.gone, g.err }
func (g ghost) Full() (bytes, files bool)  { return true, false }

// TestReceiptOfEnds holds what is said at the end to what was found.
func TestReceiptOfEnds(t *testing.T) {
	for name, c := range map[string]struct {
		box      ghost
		erased   []string
		problems int
	}{
		"all gone":  {ghost{gone: []string{"processes", "mounts", "network cable", "something new"}}, []string{"processes", "mounts", "network cable", "something new"}, 0},
		"remains":   {ghost{err: errors.New("process 7 is still there")}, nil, 1},
		"half gone": {ghost{gone: []string{"processes"}, err: errors.New("the cable is still there")}, []string{"processes"}, 1},
	} {
		b := &built{box: c.box}
		ended := b.end("", nil)
		if !slices.Equal(ended.Erased, c.erased) || len(ended.Problems) != c.problems || len(receipt.Problems(ended.Receipt)) != c.problems || !ended.Hits.Disk || ended.Hits.Files {
			t.Errorf("%s: %+v", name, ended)
		}
		last := ended.Receipt[len(ended.Receipt)-1]
		if last.What != "scratch memory" || last.Checked != receipt.NotObserved {
			t.Errorf("%s: of scratch it says %+v", name, last)
		}
		for _, i := range ended.Receipt {
			if i.How == "" || i.At.IsZero() {
				t.Errorf("%s: %+v", name, i)
			}
		}
	}
}
