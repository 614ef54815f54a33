package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/sandbox"
)

const auditTestRun = ident.Run("abcdefgh")

// auditCommand runs "cofferdam audit" with arguments on a state directory.
func auditCommand(t *testing.T, state string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := newAuditCommand(&app{stdout: &out, stderr: &errs, state: state})
	cmd.SetArgs(args)
	cmd.SetOut(&errs)
	cmd.SetErr(&errs)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

// auditState returns a state directory whose log holds one event of each kind.
func auditState(t *testing.T) string {
	t.Helper()
	state := t.TempDir()
	l, err := audit.Open(filepath.Join(state, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := l.Append(t.Context(),
		audit.Event{Kind: audit.RunStarted, Time: at, Run: auditTestRun, Command: []string{"npm", "install"}, Isolation: "container", Weaker: []string{"no memory limit"}},
		audit.Event{Kind: audit.CrossingDecided, Time: at, Run: auditTestRun, Crossing: 1, Protocol: "tls", Host: "mirror.example.com", Port: 443, Verdict: "allow",
			Rule: "--allow mirror.example.com:443", Process: "npm", PID: 7},
		audit.Event{Kind: audit.CrossingFinished, Time: at, Run: auditTestRun, Crossing: 1, Protocol: "tls", Host: "mirror.example.com", Address: "192.0.2.1:443",
			Port: 443, BytesIn: 1234567, BytesOut: 999, Millis: 1500},
		audit.Event{Kind: audit.CrossingDecided, Time: at, Run: "hgfedcba", Protocol: "http", Method: "GET", Host: "evil.example.org", Path: "/x\x1b]0;owned\a",
			Port: 80, Verdict: "deny", Rule: "default", Process: "\u202ecurl\x1b[2J"},
		audit.Event{Kind: audit.CrossingDecided, Time: at, Run: "hgfedcba", Protocol: "udp", Address: "192.0.2.9:53", Verdict: "deny", Rule: "udp-closed", Count: 12},
		audit.Event{Kind: audit.RunEnded, Time: at, Run: auditTestRun, Detail: "exit 0"},
	); err != nil {
		t.Fatal(err)
	}
	return state
}

func TestAuditTable(t *testing.T) {
	out, _, err := auditCommand(t, auditState(t))
	if err != nil {
		t.Fatal(err)
	}
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Local().Format(time.DateTime)
	want := strings.ReplaceAll(`TIME                 RUN       VERDICT  WHAT                                          RULE                            PROCESS
2026-01-02 03:04:05  abcdefgh  -        run started: npm install (container, no memory limit)  -                               -
2026-01-02 03:04:05  abcdefgh  allow    tls mirror.example.com:443                    --allow mirror.example.com:443  npm (7)
2026-01-02 03:04:05  abcdefgh  done     tls mirror.example.com:443: 1.2 MB in, 999 B out, 1.5s  -                               -
2026-01-02 03:04:05  hgfedcba  deny     http GET evil.example.org:80/x\x1b]0;owned\a  default                         \u202ecurl\x1b[2J
2026-01-02 03:04:05  hgfedcba  deny     udp 192.0.2.9:53 ×12                          udp-closed                      -
2026-01-02 03:04:05  abcdefgh  -        run ended: exit 0                             -                               -
`, "2026-01-02 03:04:05", when)
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

func TestAuditColour(t *testing.T) {
	var b bytes.Buffer
	if err := newAuditTable(&b, true).row(&audit.Event{Kind: audit.CrossingDecided, Verdict: "deny", Host: "a.example.com"}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "\x1b[31mdeny\x1b[0m   ") {
		t.Errorf("got %q", b.String())
	}
	if auditColour(&b, func(string) string { return "" }) {
		t.Error("colours for what is no terminal")
	}
}

func TestAuditFilters(t *testing.T) {
	state := auditState(t)
	store, err := sandbox.OpenStore(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Create(sandbox.Record{Run: auditTestRun, State: sandbox.Ended}); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"":                                    "123456",
		"abcdefgh":                            "1236",
		"abc":                                 "1236",
		"last":                                "1236",
		"hgfedcba":                            "45", // no record of it any more
		"--verdict deny":                      "45",
		"--verdict=deny --host *.example.org": "4",
		"--host 192.0.2.9":                    "5",
		"--kind run.started,run.ended":        "16",
		"--limit 2":                           "56",
		"--since 2026-01-02T03:04:06Z":        "",
		"--since 2026-01-02T03:04:05Z":        "123456",
		"--until 2026-01-02T03:04:05Z":        "",
		"--since 1h":                          "",
		"--until 1s":                          "123456",
	} {
		out, _, err := auditCommand(t, state, append(strings.Fields(args), "--json")...)
		if err != nil {
			t.Errorf("%q: %v", args, err)
		}
		var got strings.Builder
		for ln := range strings.Lines(out) {
			var e audit.Event
			if err := json.Unmarshal([]byte(ln), &e); err != nil {
				t.Fatal(err)
			}
			got.WriteByte('0' + byte(e.Seq))
		}
		if got.String() != want {
			t.Errorf("%q: got records %s, want %s", args, got.String(), want)
		}
	}
	if _, errs, err := auditCommand(t, state, "zzzzzzzz"); err != nil || !strings.Contains(errs, "no events of run zzzzzzzz") {
		t.Errorf("run without events: %q %v", errs, err)
	}
}

func TestAuditBadInput(t *testing.T) {
	state := auditState(t)
	for args, want := range map[string]fault.Kind{
		"--verdict no":       fault.Invalid,
		"--since yesterday":  fault.Invalid,
		"--since -2h":        fault.Invalid,
		"--until 2026-13-01": fault.Invalid,
		"--kind run":         fault.Invalid,
		"--limit=-1":         fault.Invalid,
		"qqq":                fault.NotFound,
		"verify --expect 5":  fault.Invalid,
	} {
		_, _, err := auditCommand(t, state, strings.Fields(args)...)
		if fault.KindOf(err) != want || fault.HintOf(err) == "" {
			t.Errorf("%q: %v (%v), hint %q", args, err, fault.KindOf(err), fault.HintOf(err))
		}
	}
	for _, args := range []string{"", "verify", "head"} {
		if _, _, err := auditCommand(t, t.TempDir(), strings.Fields(args)...); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%q without a log: %v", args, err)
		}
	}
}

func TestAuditMoment(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                     {},
		"90s":                  now.Add(-90 * time.Second),
		"1h30m":                now.Add(-90 * time.Minute),
		"7d":                   now.Add(-7 * 24 * time.Hour),
		"2026-01-31":           time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC),
		"2026-01-31T12:00:00Z": time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC),
	} {
		if got, err := auditMoment("--since", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v, want %v", text, got, err, want)
		}
	}
	if _, err := auditMoment("--since", "999999999d", now); err == nil {
		t.Error("an overflowing duration was accepted")
	}
}

func TestAuditVerify(t *testing.T) {
	state := auditState(t)
	head, _, err := auditCommand(t, state, "head")
	if err != nil || !strings.HasPrefix(head, "6:") {
		t.Fatalf("head %q %v", head, err)
	}
	head = strings.TrimSpace(head)
	out, _, err := auditCommand(t, state, "verify", "--expect", head)
	if err != nil || out != "6 records, each as it was written; head "+head+"\n" {
		t.Errorf("got %q %v", out, err)
	}
	other := "6:" + strings.Repeat("0f", 32)
	if out, _, err := auditCommand(t, state, "verify", "--expect", other); fault.KindOf(err) != fault.Conflict || !strings.Contains(out, "record 6 is not the one") {
		t.Errorf("wrong checkpoint: %q %v", out, err)
	}

	path := filepath.Join(state, "audit", "log.jsonl")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	lines[3] = strings.Replace(lines[3], "deny", "allow", 1)
	lines[4] = "rubbish\n"
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, err = auditCommand(t, state, "verify")
	if fault.KindOf(err) != fault.Conflict || !strings.HasPrefix(out, "line 4: record 4 was changed") || !strings.Contains(out, "\nline 5: record 5 was changed") {
		t.Errorf("tampered: %q %v", out, err)
	}
	out, _, err = auditCommand(t, state, "verify", "--json")
	var r audit.Report
	if jsonErr := json.Unmarshal([]byte(out), &r); jsonErr != nil || err == nil || len(r.Problems) != 2 || r.Problems[0].Seq != 4 || r.Head.String() != head {
		t.Errorf("json: %q %v %v", out, err, jsonErr)
	}
	out, errs, err := auditCommand(t, state, "--json")
	if fault.KindOf(err) != fault.Conflict || strings.Count(out, "\n") != 5 || !strings.Contains(errs, "line 5") {
		t.Errorf("reading a damaged log: %q %q %v", out, errs, err)
	}
}
