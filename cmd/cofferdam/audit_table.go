package main

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/audit"
)

// auditColumns are the widths of all columns but the last. They are fixed, so that events can be shown as they are read; a longer text
// pushes the rest of its line to the right.
var auditColumns = [...]int{19, 8, 7, 44, 30}

// auditTable prints events as an aligned table. Events come from audit.Read, which has made their texts inert.
type auditTable struct {
	w      io.Writer
	colour bool
	begun  bool
}

func newAuditTable(w io.Writer, colour bool) *auditTable { return &auditTable{w: w, colour: colour} }

func (t *auditTable) row(e *audit.Event) error {
	if !t.begun {
		t.begun = true
		if err := t.print("", "TIME", "RUN", "VERDICT", "WHAT", "RULE", "PROCESS"); err != nil {
			return err
		}
	}
	verdict := e.Verdict
	if e.Kind == audit.CrossingFinished {
		verdict = "done"
	}
	return t.print(verdict, e.Time.Local().Format(time.DateTime), e.Run.String(), verdict, auditWhat(e), e.Rule, auditProcess(e))
}

func (t *auditTable) print(verdict string, cells ...string) error {
	var b strings.Builder
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		pad := 0
		if i < len(auditColumns) {
			pad = max(0, auditColumns[i]-utf8.RuneCountInString(cell)) + 2
		}
		if i == 2 && t.colour {
			cell = paintVerdict(verdict, cell)
		}
		b.WriteString(cell)
		b.WriteString(strings.Repeat(" ", pad))
	}
	_, err := fmt.Fprintln(t.w, strings.TrimRight(b.String(), " "))
	return err
}

func paintVerdict(verdict, text string) string {
	switch verdict {
	case "deny":
		return "\x1b[31m" + text + "\x1b[0m"
	case "ask":
		return "\x1b[33m" + text + "\x1b[0m"
	case "allow":
		return "\x1b[32m" + text + "\x1b[0m"
	}
	return text
}

// auditWhat says in a few words what the event is about.
func auditWhat(e *audit.Event) string {
	switch e.Kind {
	case audit.CrossingDecided:
		return auditRepeat(crossingWhat(e), e.Count)
	case audit.CrossingFinished:
		return crossingWhat(e) + ": " + auditOutcome(e)
	case audit.CredentialChanged:
		return strings.TrimSpace("credentials: " + e.Detail + " " + e.Credential)
	case audit.RunStarted:
		return "run started: " + strings.Join(e.Command, " ") + auditLevel(e)
	}
	what := strings.ReplaceAll(string(e.Kind), ".", " ")
	if e.Kind == audit.RunEnded && len(e.Weaker) > 0 {
		what = "run ended" + auditLevel(e)
	}
	for _, more := range []string{e.Host, e.Detail, e.Error} {
		if more != "" {
			what += ": " + more
		}
	}
	return what
}

// auditLevel is how strong the wall was, with what made it weaker.
func auditLevel(e *audit.Event) string {
	if e.Isolation == "" {
		return ""
	}
	return " (" + strings.Join(append([]string{e.Isolation}, e.Weaker...), ", ") + ")"
}

func crossingWhat(e *audit.Event) string {
	if e.Repository != "" {
		return gitWhat(e)
	}
	where := e.Host
	if where == "" {
		where = e.Address
	}
	if e.Port != 0 && !auditHasPort(where) {
		where = net.JoinHostPort(where, strconv.Itoa(int(e.Port)))
	}
	words := []string{e.Protocol}
	if e.Method != "" {
		words = append(words, e.Method)
	}
	return strings.TrimSpace(strings.Join(append(words, where+e.Path), " "))
}

// gitWhat is an operation at the Git proxy: which service of it, or which request to the forge, and of a push which refs.
func gitWhat(e *audit.Event) string {
	words := []string{"git", e.Access, e.Repository}
	if len(e.Refs) > 0 {
		words = append(words, "("+strings.Join(e.Refs, ", ")+")")
	}
	return strings.Join(words, " ") + " at " + net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
}

func auditHasPort(s string) bool {
	_, _, err := net.SplitHostPort(s)
	return err == nil
}

func auditRepeat(what string, n uint64) string {
	if n > 1 {
		return fmt.Sprintf("%s ×%d", what, n)
	}
	return what
}

func auditOutcome(e *audit.Event) string {
	var parts []string
	if e.Status != 0 {
		parts = append(parts, fmt.Sprintf("status %d", e.Status))
	}
	if e.Error != "" {
		parts = append(parts, e.Error)
	}
	parts = append(parts, auditBytes(e.BytesIn)+" in", auditBytes(e.BytesOut)+" out", (time.Duration(e.Millis) * time.Millisecond).String())
	if e.Credential != "" {
		parts = append(parts, "lent "+e.Credential)
	}
	if e.Redactions > 0 {
		parts = append(parts, fmt.Sprintf("echoes replaced: %d", e.Redactions))
	}
	if e.Type != "" {
		parts = append(parts, e.Type)
	}
	return strings.Join(parts, ", ")
}

// auditBytes writes a size with at most four digits and a decimal unit.
func auditBytes(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), -1
	for f >= 999.95 && unit < 4 {
		f /= 1000
		unit++
	}
	return fmt.Sprintf("%.1f %cB", f, "kMGTP"[unit])
}

func auditProcess(e *audit.Event) string {
	switch {
	case e.PID == 0:
		return e.Process
	case e.Process == "":
		return fmt.Sprintf("pid %d", e.PID)
	}
	return fmt.Sprintf("%s (%d)", e.Process, e.PID)
}
