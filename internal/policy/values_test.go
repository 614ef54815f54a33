package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestParseValues(t *testing.T) {
	const refused = -1
	for name, tt := range map[string]struct {
		cases map[string]int64
	}{
		"memory": {map[string]int64{"16MiB": 16 * MiB, "4GiB": 4 * GiB, "512m": 512 * MiB, "2g": 2 * GiB, "16384KiB": 16 * MiB, "16384k": 16 * MiB, "1TiB": TiB, "1t": TiB, "16777216": 16 * MiB, "64TiB": 64 * TiB,
			"": refused, "0": refused, "1": refused, "4GB": refused, "4gib": refused, "4G": refused, "-4GiB": refused, "+4GiB": refused, "4 GiB": refused, "1.5GiB": refused, "1e9": refused, "GiB": refused, "04GiB": refused,
			"65TiB": refused, "9223372036854775808": refused, "9223372036854775807TiB": refused, "8388608TiB": refused, "16777216TiB": refused}},
		"disk":        {map[string]int64{"1MiB": MiB, "1024TiB": 1024 * TiB, "1KiB": refused, "1025TiB": refused}},
		"cpus":        {map[string]int64{"1": 1000, "0.5": 500, "1.25": 1250, "0.010": 10, "4096": 4096000, "2.": refused, ".5": refused, "0": refused, "0.0": refused, "0.001": refused, "1.0001": refused, "-1": refused, "1e1": refused, "NaN": refused, "Inf": refused, "4097": refused, "99999999999999999999": refused, "9223372036854775": refused}},
		"pids":        {map[string]int64{"4": 4, "512": 512, "4194304": 4194304, "3": refused, "0": refused, "-1": refused, "4194305": refused, "5k": refused}},
		"connections": {map[string]int64{"1": 1, "65536": 65536, "65537": refused, "0": refused}},
		"open-files":  {map[string]int64{"64": 64, "1048576": 1 << 20, "63": refused, "1048577": refused, "1k": refused}},
		"files":       {map[string]int64{"1024": 1024, "4294967296": 1 << 32, "1023": refused, "0": refused}},
		"bandwidth":   {map[string]int64{"16KiB": 16 * KiB, "15KiB": refused, "10MiB": 10 * MiB, "1TiB": TiB, "1023": refused, "1MiB/s": refused}},
		"output":      {map[string]int64{"1KiB": KiB, "64m": 64 * MiB, "1023": refused, "0": refused}},
		"timeout": {map[string]int64{
			"90s": int64(90 * time.Second), "30m": int64(30 * time.Minute), "2h30m": int64(150 * time.Minute), "1s": int64(time.Second), "720h": int64(720 * time.Hour),
			"0s": refused, "10ms": refused, "-5m": refused, "721h": refused, "90": refused, "1d": refused, "": refused, "99999999999h": refused}},
	} {
		for in, want := range tt.cases {
			var r Resources
			err := r.ParseLimit(name, in)
			got := value(r, name)
			if want == refused {
				if err == nil || fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
					t.Errorf("%s %q = %d, %v; want a refusal with a hint", name, in, got, err)
				}
			} else if err != nil || got != want {
				t.Errorf("%s %q = %d, %v; want %d", name, in, got, err, want)
			}
		}
	}
}

// value returns a limit by its name.
func value(r Resources, name string) int64 {
	for _, l := range limits() {
		if l.name == name {
			return *l.of(&r)
		}
	}
	return -2
}

func read(name, text string) (int64, error) {
	var r Resources
	err := r.ParseLimit(name, text)
	return value(r, name), err
}

func TestFormatsParse(t *testing.T) {
	for _, n := range []int64{MiB, 16 * MiB, 1536 * MiB, 4 * GiB, TiB, 1024 * TiB, MiB + 1, MiB + 1024} {
		if got, err := read("disk", FormatSize(n)); err != nil || got != n {
			t.Errorf("%d prints as %s, read as %d, %v", n, FormatSize(n), got, err)
		}
	}
	for _, n := range []int64{10, 100, 500, 1000, 1250, 1255, 64000} {
		if got, err := read("cpus", FormatCPUs(n)); err != nil || got != n {
			t.Errorf("%d prints as %s, read as %d, %v", n, FormatCPUs(n), got, err)
		}
	}
	for d, want := range map[time.Duration]string{30 * time.Minute: "30m", time.Hour: "1h", 90 * time.Second: "1m30s", 150 * time.Minute: "2h30m", time.Second: "1s", 20 * time.Second: "20s", 10 * time.Hour: "10h", 720 * time.Hour: "720h"} {
		if got := formatTimeout(int64(d)); got != want {
			t.Errorf("%d prints as %s, want %s", d, got, want)
		}
	}
}

func TestOrDefaults(t *testing.T) {
	got := Resources{Memory: GiB}.OrDefaults()
	want := DefaultResources()
	want.Memory = GiB
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := DefaultResources().check(); err != nil {
		t.Error(err)
	}
}

func TestParseMount(t *testing.T) {
	for in, want := range map[string]string{
		"/srv:/data": "/srv:/data:ro", "/srv:/data:ro": "/srv:/data:ro", "/srv:/data:rw": "/srv:/data:rw", "/a b,c:/d": "/a b,c:/d:ro",
		"": "", "/srv": "", "srv:/data": "", "/srv:data": "", "/srv:/data:wr": "", "/srv:/data:rw:x": "", "/:/data": "", "/srv:/": "", "/srv/..:/x": "", "/proc:/x": "", "/dev/sda:/x": "", "/srv:/dev/x": "", "/srv:/proc": "",
		"/process:/processes": "/process:/processes:ro", "/a\nb:/x": "", "/a\xff:/x": "", "/a\x00:/x": "", "/" + strings.Repeat("a", 5000) + ":/x": "",
	} {
		m, err := ParseMount(in)
		if (err == nil) != (want != "") || err == nil && m.String() != want || err != nil && fault.HintOf(err) == "" {
			t.Errorf("ParseMount(%.40q) = %v, %v; want %q", in, m, err, want)
		}
	}
}

func TestParseVariable(t *testing.T) {
	for in, ok := range map[string]bool{
		"A=b": true, "A=": true, "_a1=x=y": true, "A=a\nb": true,
		"A": false, "=b": false, "1A=b": false, "A-B=c": false, "A B=c": false, "COFFERDAM_X=1": false, "A=a\x00b": false, "Ä=b": false, "A=" + strings.Repeat("x", 40000): false,
	} {
		name, value, err := ParseVariable(in)
		if (err == nil) != ok || err == nil && name+"="+value != in {
			t.Errorf("ParseVariable(%.40q) = %q, %.20q, %v; want ok %v", in, name, value, err, ok)
		}
		if err != nil && strings.Contains(err.Error(), "a\x00b") {
			t.Error("the value is printed")
		}
	}
}

func TestLooksLikeCredential(t *testing.T) {
	for text, want := range map[string]bool{
		"A=ghp_0123456789abcdefghijABCDEFGHIJ012345": true, "A=AKIA0123456789ABCDEF": true, "A=sk-proj-0123456789abcdef": true, "K=-----BEGIN RSA PRIVATE KEY-----": true,
		"DATABASE_URL=postgres://user:hunter22@db.example.com/x": true, "API_TOKEN=0123456789abcdef": true, "my_password=correct-horse-battery": true, "J=eyJhbGciOiJIUzI1NiJ9.e30.x": true,
		"GITHUB_TOKEN=cfd_0123456789abcdef": false, "TOKEN=": false, "TOKEN=short": false, "LANG=C.UTF-8": false, "URL=https://example.com/a@b:c": false, "TOKEN_FILE=/run/secrets/token": false, "A=sk-": false, "SECRET_NAME=two words long": false,
	} {
		name, value, _ := strings.Cut(text, "=")
		if got := LooksLikeCredential(name, value); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}
