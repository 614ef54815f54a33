package wire

import (
	"bytes"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestAnswers(t *testing.T) {
	report := &Report{Results: []Result{{Ref: "refs/heads/a"}, {Ref: "refs/heads/b", Refused: "b is protected\n\x1b[2J here"}}}
	plain := lines("unpack ok\n", "ok refs/heads/a\n", "ng refs/heads/b b is protected  [2J here\n", "")
	for _, c := range []struct{ capabilities, want string }{
		{"report-status", plain},
		{"report-status side-band-64k", lines("\x02hello\n", "\x01"+plain, "")},
		{"side-band-64k", lines("\x02hello\n", "")},
		{"", ""},
	} {
		var out bytes.Buffer
		a := NewAnswer(&out, strings.Fields(c.capabilities))
		if err := a.Message([]byte("hello\n")); err != nil {
			t.Fatal(err)
		}
		if err := a.Finish(report); err != nil {
			t.Fatal(err)
		}
		if out.String() != c.want {
			t.Errorf("%q:\n got %q\nwant %q", c.capabilities, out.String(), c.want)
		}
		if strings.Contains(c.capabilities, "report-status") != a.Readable() {
			t.Errorf("%q: readable %v", c.capabilities, a.Readable())
		}
	}
}

func TestReportRoundTrip(t *testing.T) {
	a, _ := ParseID(SHA1, []byte(idA))
	report := &Report{Unpack: "disk full", Results: []Result{
		{Ref: "refs/heads/a"}, {Ref: "refs/heads/b", Refused: "no"}, {Ref: "refs/heads/c", Instead: "refs/heads/d", From: SHA1.Zero(), To: a, Forced: true},
	}}
	for _, capabilities := range []Capabilities{{"report-status-v2"}, {"report-status-v2", "side-band-64k"}} {
		var out bytes.Buffer
		answer := NewAnswer(&out, capabilities)
		long := bytes.Repeat([]byte("x"), 3*MaxLine)
		if err := answer.Message(long); err != nil {
			t.Fatal(err)
		}
		if err := answer.Finish(report); err != nil {
			t.Fatal(err)
		}
		var said []byte
		got, err := ReadReport(&out, capabilities, func(text []byte) error { said = append(said, text...); return nil })
		if err != nil || !reflect.DeepEqual(got, report) {
			t.Errorf("%v: %+v %v", capabilities, got, err)
		}
		if capabilities.Has("side-band-64k") && !bytes.Equal(said, long) {
			t.Errorf("%d bytes of %d said", len(said), len(long))
		}
	}
}

func TestReadReportRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		band bool
		err  error
	}{
		"no unpack":       {lines("ok refs/heads/a\n", ""), false, ErrSyntax},
		"no end":          {lines("unpack ok\n"), false, io.ErrUnexpectedEOF},
		"unknown word":    {lines("unpack ok\n", "maybe refs/heads/a\n", ""), false, ErrSyntax},
		"option alone":    {lines("unpack ok\n", "option refname refs/heads/a\n", ""), false, ErrSyntax},
		"funny option":    {lines("unpack ok\n", "ok refs/heads/a\n", "option refname ../x\n", ""), false, ErrSyntax},
		"band 4":          {lines("\x04x", ""), true, ErrSyntax},
		"fatal":           {lines("\x03it is over\n", ""), true, ErrFatal},
		"no end of bands": {lines("\x02x"), true, io.ErrUnexpectedEOF},
		"a page":          {"<html>", false, ErrSyntax},
	} {
		var capabilities Capabilities
		if c.band {
			capabilities = Capabilities{"side-band-64k"}
		}
		if _, err := ReadReport(strings.NewReader(c.in), capabilities, func([]byte) error { return nil }); err != c.err {
			t.Errorf("%s: %v, not %v", name, err, c.err)
		}
	}
}

func TestFilterAdvertisement(t *testing.T) {
	in := lines("# service=git-receive-pack\n", "", idA+" refs/heads/main\x00report-status delete-refs push-cert=x side-band-64k object-format=sha1 agent=git/2 secret=y", idB+" .have", idB+" refs/pull/1/head", "shallow "+idA, "")
	want := lines("# service=git-receive-pack\n", "", idA+" refs/heads/main\x00report-status delete-refs side-band-64k object-format=sha1 agent=git/2 no-thin\n", "shallow "+idA+"\n", "")
	var out bytes.Buffer
	had, err := FilterAdvertisement(&out, strings.NewReader(in))
	if err != nil || out.String() != want || !had.Has("push-cert") {
		t.Errorf("%v %v\n got %q\nwant %q", had, err, out.String(), want)
	}
	for name, in := range map[string]string{
		"other service": lines("# service=git-upload-pack\n", "", idA+" refs/heads/main\x00", ""),
		"version 2":     lines("version 2\n", "ls-refs\n", ""),
		"error":         lines("# service=git-receive-pack\n", "", "ERR no\n", ""),
		"no end":        lines("# service=git-receive-pack\n", "", idA+" refs/heads/main\x00"),
		"control":       lines("# service=git-receive-pack\n", "", idA+" refs/heads/\x1b[2J\x00", ""),
	} {
		if _, err := FilterAdvertisement(io.Discard, strings.NewReader(in)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestReadServer(t *testing.T) {
	in := lines("version 2\n", "agent=git/2\n", "ls-refs=unborn\n", "fetch=shallow wait-for-done filter\n", "object-format=sha256\n", "")
	for _, in := range []string{in, lines("# service=git-upload-pack\n", "") + in} {
		s, err := ReadServer(strings.NewReader(in))
		if err != nil || s != (Server{Format: SHA256, LsRefs: true, Fetch: true, Filter: true, Shallow: true}) {
			t.Errorf("%+v %v", s, err)
		}
	}
	if _, err := ReadServer(strings.NewReader(lines("# service=git-upload-pack\n", "", idA+" HEAD\x00", ""))); err != ErrOldServer {
		t.Errorf("%v", err)
	}
}

func TestReadLsRefs(t *testing.T) {
	var got []Ref
	in := lines(idA+" HEAD symref-target:refs/heads/main", idA+" refs/heads/main peeled:"+idB, "unborn HEAD symref-target:refs/heads/x\n", "")
	if err := ReadLsRefs(strings.NewReader(in), SHA1, func(r Ref) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].Symbolic != "refs/heads/main" || got[1].Symbolic != "" || got[2].Symbolic != "refs/heads/x" {
		t.Errorf("%+v", got)
	}
	if err := ReadLsRefs(strings.NewReader(lines("ERR no", "")), SHA1, func(Ref) {}); err == nil {
		t.Error("an error is accepted")
	}
}

// FuzzFromUpstream holds the readers of an upstream's bytes to ending with an error or a value, and the advertisement to being accepted again.
func FuzzFromUpstream(f *testing.F) {
	f.Add([]byte(lines("# service=git-receive-pack\n", "", idA+" refs/heads/main\x00report-status", "")))
	f.Add([]byte(lines("unpack ok\n", "ng refs/heads/a no\n", "")))
	f.Add([]byte(lines("version 2\n", "fetch=filter", "")))
	f.Fuzz(func(t *testing.T, in []byte) {
		_, _ = ReadReport(bytes.NewReader(in), Capabilities{"side-band-64k"}, func([]byte) error { return nil })
		_, _ = ReadServer(bytes.NewReader(in))
		_ = ReadLsRefs(bytes.NewReader(in), SHA1, func(Ref) {})
		var once, twice bytes.Buffer
		if _, err := FilterAdvertisement(&once, bytes.NewReader(in)); err != nil {
			return
		}
		if _, err := FilterAdvertisement(&twice, bytes.NewReader(once.Bytes())); err != nil {
			t.Fatalf("%v: %q", err, once.Bytes())
		}
	})
}

// delay is a filter that holds back the last byte and turns x into y.
type delay struct{ held []byte }

func (d *delay) Next(p []byte) []byte {
	all := bytes.ReplaceAll(append(d.held, p...), []byte("x"), []byte("y"))
	d.held = append([]byte(nil), all[max(0, len(all)-1):]...)
	return all[:max(0, len(all)-1)]
}

func (d *delay) End() []byte { return d.held }

func TestCopyFetch(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"version 2": {
			lines("acknowledgments\n", "ready\n") + "0001" + lines("packfile\n", "\x02ax", "\x01PAx", "\x02b\n", "\x01CK", ""),
			lines("acknowledgments\n", "ready\n") + "0001" + lines("packfile\n", "\x02a", "\x01PA", "\x02yb", "\x01yC", "\x01K", "\x02\n", ""),
		},
		"alive":         {lines("\x01", "\x01xx", ""), lines("\x01", "\x01y", "\x01y", "")},
		"no bands":      {lines("NAK\n") + "PACKx\x00\x01", lines("NAK\n") + "PACKx\x00\x01"},
		"refs":          {lines(idA+" refs/heads/x\n", ""), lines(idA+" refs/heads/x\n", "")},
		"ends in bands": {lines("\x02ax"), lines("\x02a", "\x02y")},
		"large":         {lines("\x01"+strings.Repeat("x", maxBand), ""), lines("\x01"+strings.Repeat("y", maxBand-1), "\x01y", "")},
	} {
		var out bytes.Buffer
		err := CopyFetch(&out, strings.NewReader(c.in), func() Filter { return &delay{} }, func() error { return nil })
		if err != nil || out.String() != c.want {
			t.Errorf("%s: %v\n got %.200q\nwant %.200q", name, err, out.String(), c.want)
		}
	}
	for _, in := range []string{"00", "0009ab", "zzzz"} {
		if err := CopyFetch(io.Discard, strings.NewReader(in), func() Filter { return &delay{} }, func() error { return nil }); err == nil {
			t.Errorf("%q is copied", in)
		}
	}
}
