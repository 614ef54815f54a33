package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// gone checks that nothing is left on the machine of any sandbox, and that the log verifies. The service has ended.
func (s *service) gone() {
	s.t.Helper()
	var left []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if r := s.do("gc"); r.code != 0 { // the mark of a run that ended well is left for the next
			s.t.Errorf("gc: exit %d: %s", r.code, r.stderr)
		}
		left = left[:0]
		for _, p := range s.processes() {
			left = append(left, fmt.Sprintf("process %d (%s)", p.pid, p.program))
		}
		left = append(left, s.lines("/proc/self/mountinfo", "mount")...)
		left = append(left, s.lines("/proc/net/unix", "socket")...)
		left = append(left, s.leftFiles()...)
		if len(left) == 0 || time.Now().After(deadline) {
			break
		}
	}
	if len(left) > 0 {
		s.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if r := s.do("audit", "verify"); r.code != 0 {
		s.t.Errorf("audit verify: exit %d: %s%s", r.code, r.stdout, r.stderr)
	}
}

// leftFiles lists what should have gone from the state directory, and control groups.
func (s *service) leftFiles() (left []string) {
	left = append(left, groups(s.marks())...)
	for _, pattern := range []string{"active/*", "keepers/*", "runs/*/scratch*"} {
		found, _ := filepath.Glob(filepath.Join(s.state, pattern)) // the pattern is a good one
		left = append(left, found...)
	}
	_ = filepath.WalkDir(filepath.Join(s.state, "workspaces"), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, path)
		}
		return nil
	}) // the function returns nothing else
	return left
}

// record is one line of the audit log.
type record struct {
	Seq        uint64 `json:"seq"`
	Kind       string `json:"kind"`
	Tenant     string `json:"tenant"`
	Agent      string `json:"agent"`
	Run        string `json:"run"`
	Principal  string `json:"principal"`
	Protocol   string `json:"protocol"`
	Host       string `json:"host"`
	Method     string `json:"method"`
	Path       string `json:"path"`
	Verdict    string `json:"verdict"`
	Rule       string `json:"rule"`
	Reason     string `json:"reason"`
	Credential string `json:"credential"`
}

// log reads the whole audit log, and checks that no number is missing.
func (s *service) log() (records []record) {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.state, "audit", "log.jsonl"))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			s.t.Fatalf("audit line %q: %v", line, err)
		}
		if records = append(records, r); r.Seq != uint64(len(records)) {
			s.t.Fatalf("the log goes from %d to %d", len(records)-1, r.Seq)
		}
	}
	return records
}

// recorded finds a decision in the log.
func recorded(records []record, want record) (record, bool) {
	for _, r := range records {
		if r.Kind == "crossing.decided" && r.Host == want.Host && (want.Verdict == "" || r.Verdict == want.Verdict) && (want.Path == "" || r.Path == want.Path) &&
			(want.Rule == "" || r.Rule == want.Rule) && (want.Run == "" || r.Run == want.Run) {
			return r, true
		}
	}
	return record{}, false
}
