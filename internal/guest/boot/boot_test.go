package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
)

func valid() Boot {
	return Boot{
		Seed: [SeedSize]byte{1, 2}, Time: time.Unix(1900000000, 5).UTC(), Hostname: "box", MachineID: "id", Root: 0, Workspace: &Workspace{Disk: 1, Target: "/work", Mode: Overlay},
		Mounts: []Mount{{Disk: 2, Target: "/mnt/x", File: true}}, Scratch: Scratch{Bytes: 1 << 20, Files: 100, Disk: new(3)}, Trust: []byte("pem"), Runner: `{"a":1}`, PIDs: 5, Rights: Usual, Rest: true,
	}
}

// prepared is what comes before a boot.
func prepared(b Boot) Prepare {
	return Prepare{Hostname: b.Hostname, MachineID: b.MachineID, Root: b.Root, Scratch: Scratch{Bytes: 1 << 30, Files: 7}, Rights: b.Rights}
}

// TestConversation is a machine's whole life as both sides speak it.
func TestConversation(t *testing.T) {
	a, b := net.Pipe()
	host, guest := NewHost(a), NewGuest(b)
	want := valid()
	early := prepared(want)
	seed := [SeedSize]byte{9}
	big := bytes.Repeat([]byte("0123456789abcdef"), MaxChunk/8)
	told := make(chan error, 1)
	go func() {
		told <- errors.Join(guest.Ready("6.1\x1b[31m"), expect(guest, Order{Prepare: &early}), guest.Prepared(), expect(guest, Order{Boot: &want}), guest.Started(), expect(guest, Order{Clock: want.Time.Local()}), expect(guest, Order{Reseed: &seed}),
			guest.Rested(), expect(guest, Order{GoOn: true}), guest.Ended(Ended{OutOfMemory: 2, Runner: "signal: killed"}), send(guest.Changes(), big), expect(guest, Order{Kill: true}))
	}()
	ready, err := host.Ready()
	if err != nil || ready != (Ready{Version, "6.1?[31m"}) {
		t.Fatalf("ready: %+v, %v", ready, err)
	}
	if err := errors.Join(host.Prepare(early), host.Prepared(), host.Boot(want), host.Started(), host.Clock(want.Time), host.Reseed(seed), host.Rested(), host.GoOn()); err != nil {
		t.Fatal(err)
	}
	if e, err := host.Ended(); err != nil || e != (Ended{2, "signal: killed"}) {
		t.Fatalf("ended: %+v, %v", e, err)
	}
	if got, err := io.ReadAll(host.Changes()); err != nil || !bytes.Equal(got, big) {
		t.Fatalf("changes: %d bytes, %v", len(got), err)
	}
	if err := errors.Join(host.Kill(), <-told); err != nil {
		t.Fatal(err)
	}
}

func expect(g *Guest, want Order) error {
	got, err := g.Receive()
	if err == nil && !reflect.DeepEqual(got, want) {
		return errors.New("another order came")
	}
	return err
}

func send(w io.WriteCloser, data []byte) error {
	_, err := w.Write(data)
	return errors.Join(err, w.Close())
}

// TestFailed hears a failure wherever something else is expected.
func TestFailed(t *testing.T) {
	for name, hear := range map[string]func(*Host) error{
		"ready": func(h *Host) error { _, err := h.Ready(); return err }, "prepared": (*Host).Prepared, "started": (*Host).Started, "rested": (*Host).Rested,
		"ended": func(h *Host) error { _, err := h.Ended(); return err }, "changes": func(h *Host) error { _, err := io.ReadAll(h.Changes()); return err },
	} {
		var wire bytes.Buffer
		if err := NewGuest(&wire).Failed(errors.New("no\x1b[2Jdisk" + strings.Repeat("x", 1<<20))); err != nil {
			t.Fatal(err)
		}
		err := hear(NewHost(&wire))
		var f *Failure
		if !errors.As(err, &f) || !strings.HasPrefix(f.Text, "no?[2Jdisk") || len(f.Text) > maxText {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRefused gives the host what a guest may not say.
func TestRefused(t *testing.T) {
	frame := func(k kind, payload string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(len(payload)))) + string(rune(k)) + payload
	}
	for name, wire := range map[string]string{
		"nothing": "", "half a header": "\x00\x00", "half a frame": frame(kindReady, "{}")[:6], "no kind": frame(0, "{}"), "unknown kind": frame(kindEnd, "{}"), "host's kind": frame(kindBoot, strings.Repeat("x", 80)),
		"too early": frame(kindStarted, ""), "too long": frame(kindReady, strings.Repeat(" ", maxWords+1)), "longer than memory": "\xff\xff\xff\xff" + string(rune(kindReady)),
		"too short": frame(kindReady, ""), "unknown member": frame(kindReady, `{"version":3,"x":1}`), "more behind": frame(kindReady, `{"version":3} {}`), "no version": frame(kindReady, `{}`),
		"another version": frame(kindReady, `{"version":4}`), "no JSON": frame(kindReady, "xx"),
	} {
		if r, err := NewHost(bytes.NewBufferString(wire)).Ready(); err == nil {
			t.Errorf("%s: taken as %+v", name, r)
		}
	}
	for name, wire := range map[string]string{
		"an end that is not told": frame(kindChunk, "abc"), "an empty chunk": frame(kindChunk, "") + frame(kindDone, ""), "a long chunk": frame(kindChunk, strings.Repeat("x", MaxChunk+1)) + frame(kindDone, ""),
		"something else": frame(kindReady, "{}"), "words at the end": frame(kindDone, "x"),
	} {
		if _, err := io.ReadAll(NewHost(bytes.NewBufferString(wire)).Changes()); err == nil {
			t.Errorf("changes, %s: taken", name)
		}
	}
}

// scratchOn gives scratch a disk.
func scratchOn(disk int) func(*Boot) { return func(b *Boot) { b.Scratch.Disk = new(disk) } }

// TestSwapSize has room for all of scratch and a page more.
func TestSwapSize(t *testing.T) {
	for scratch, want := range map[int64]int64{1: 8192, 4096: 8192, 4097: 12288, 1 << 30: 1<<30 + 4096} {
		if got := SwapSize(scratch); got != want {
			t.Errorf("for %d bytes: %d, want %d", scratch, got, want)
		}
	}
}

// TestIncomplete sends what nothing can be built of. Neither side lets it pass.
func TestIncomplete(t *testing.T) {
	for name, spoil := range map[string]func(*Boot){
		"no seed": func(b *Boot) { b.Seed = [SeedSize]byte{} }, "no time": func(b *Boot) { b.Time = time.Time{} }, "no name": func(b *Boot) { b.Hostname = "" }, "two lines": func(b *Boot) { b.Hostname = "a\nb" },
		"no scratch": func(b *Boot) { b.Scratch = Scratch{} }, "no runner": func(b *Boot) { b.Runner = "" }, "two lines for the runner": func(b *Boot) { b.Runner = "a\nb" },
		"no rights": func(b *Boot) { b.Rights = "" }, "unknown rights": func(b *Boot) { b.Rights = "all" }, "no mode": func(b *Boot) { b.Workspace.Mode = "" }, "unknown mode": func(b *Boot) { b.Workspace.Mode = "rw" },
		"relative": func(b *Boot) { b.Mounts[0].Target = "mnt" }, "the root": func(b *Boot) { b.Mounts[0].Target = "/" }, "upwards": func(b *Boot) { b.Workspace.Target = "/a/../b" },
		"no such disk": func(b *Boot) { b.Root = MaxDisks }, "less than a disk": func(b *Boot) { b.Mounts[0].Disk = -1 }, "less than nothing": func(b *Boot) { b.PIDs = -1 },
		"no such disk for scratch": scratchOn(MaxDisks), "the root for scratch": scratchOn(valid().Root), "the folder for scratch": scratchOn(valid().Workspace.Disk), "a mount for scratch": scratchOn(valid().Mounts[0].Disk),
		"too long": func(b *Boot) { b.Trust = make([]byte, maxBoot) },
	} {
		b := valid()
		spoil(&b)
		var wire bytes.Buffer
		if err := NewHost(&wire).Boot(b); err == nil || wire.Len() > 0 {
			t.Errorf("%s: sent, %v", name, err)
		}
	}
	var wire bytes.Buffer
	if err := write(&wire, kindBoot, append(make([]byte, SeedSize), `{"rights":"usual"}`...)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewGuest(&wire).Receive(); err == nil {
		t.Error("the guest takes a boot without a seed")
	}
}

// TestPrepare says beforehand what cannot be built, and what no boot can repeat; and boots what was prepared as another.
func TestPrepare(t *testing.T) {
	for name, spoil := range map[string]func(*Prepare){
		"no name": func(p *Prepare) { p.Hostname = "" }, "no scratch": func(p *Prepare) { p.Scratch = Scratch{} }, "a disk for scratch": func(p *Prepare) { p.Scratch.Disk = new(3) },
		"no rights": func(p *Prepare) { p.Rights = "" }, "no such disk": func(p *Prepare) { p.Root = MaxDisks }, "too long": func(p *Prepare) { p.Hostname = strings.Repeat("x", maxWords) },
	} {
		p := prepared(valid())
		spoil(&p)
		var wire bytes.Buffer
		if err := NewHost(&wire).Prepare(p); err == nil || wire.Len() > 0 {
			t.Errorf("%s: sent, %v", name, err)
		}
	}
	var wire bytes.Buffer
	if err := write(&wire, kindPrepare, []byte(`{"hostname":"box"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewGuest(&wire).Receive(); err == nil {
		t.Error("the guest takes half of what it is to prepare")
	}
	fitting := valid()
	fitting.Scratch.Disk, fitting.Rest = nil, false
	p := prepared(fitting)
	if err := p.Fits(fitting); err != nil {
		t.Errorf("the same: %v", err)
	}
	for name, change := range map[string]func(*Boot){
		"name": func(b *Boot) { b.Hostname = "other" }, "id": func(b *Boot) { b.MachineID = "other" }, "root": func(b *Boot) { b.Root = 4 }, "rights": func(b *Boot) { b.Rights = "other" },
		"a disk for scratch": func(b *Boot) { b.Scratch.Disk = new(3) }, "open files": func(b *Boot) { b.OpenFiles = 5 }, "rest": func(b *Boot) { b.Rest = true },
	} {
		b := fitting
		change(&b)
		if p.Fits(b) == nil {
			t.Errorf("%s: becomes another", name)
		}
	}
}

// FuzzHost feeds the host anything. What it returns is bounded and inert, and it reads no more than it says.
func FuzzHost(f *testing.F) {
	var wire bytes.Buffer
	g := NewGuest(&wire)
	if err := errors.Join(g.Ready("6.1"), g.Started(), g.Ended(Ended{Runner: "exit status 0"}), send(g.Changes(), []byte("abc"))); err != nil {
		f.Fatal(err)
	}
	f.Add(wire.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		h := NewHost(bytes.NewBuffer(data))
		inert := func(s string) {
			if len(s) > maxText || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("not inert: %q", s)
			}
		}
		r, err := h.Ready()
		inert(r.Kernel)
		if err == nil {
			err = h.Started()
		}
		if err == nil {
			var e Ended
			e, err = h.Ended()
			inert(e.Runner)
		}
		if err == nil {
			var n int64
			if n, err = io.Copy(io.Discard, h.Changes()); n > int64(len(data)) {
				t.Errorf("%d bytes out of %d", n, len(data))
			}
		}
		var failure *Failure
		if errors.As(err, &failure) {
			inert(failure.Text)
		}
	})
}

// FuzzBoot holds what a guest takes to what a host could have sent.
func FuzzBoot(f *testing.F) {
	payload, err := valid().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Fuzz(func(t *testing.T, data []byte) {
		if least, most := sizes(kindBoot); len(data) < least || len(data) > most {
			return
		}
		b, err := decodeBoot(data)
		if err != nil {
			return
		}
		again, err := b.encode()
		if err != nil {
			t.Fatalf("%+v: %v", b, err)
		}
		if c, err := decodeBoot(again); err != nil || !reflect.DeepEqual(b, c) {
			t.Errorf("%+v became %+v, %v", b, c, err)
		}
	})
}

func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for k := range kindEnd + 1 {
		name := k.String()
		if seen[name] || k > 0 && k < kindEnd == strings.HasPrefix(name, "kind(") {
			t.Errorf("%d is called %q", k, name)
		}
		seen[name] = true
	}
}
