package main

import (
	"fmt"
	"io"
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
	return t.print(verdict, e.Time.Local().Format(time.DateTime), e.Run.String(), verdict, e.Words(), e.Rule, auditProcess(e))
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

func auditProcess(e *audit.Event) string {
	switch {
	case e.PID == 0:
		return e.Process
	case e.Process == "":
		return fmt.Sprintf("pid %d", e.PID)
	}
	return fmt.Sprintf("%s (%d)", e.Process, e.PID)
}
