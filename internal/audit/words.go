package audit

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/receipt"
)

// Words says in a line what an event is about, for people. The event is as Read, Tail or Lines return it, so the line is inert; it is bounded as the event's texts are.
func (e *Event) Words() string {
	switch e.Kind {
	case CrossingDecided:
		what := e.crossingWords()
		if e.Count > 1 {
			what += fmt.Sprintf(" ×%d", e.Count)
		}
		return what
	case CrossingFinished:
		return e.crossingWords() + ": " + e.outcomeWords()
	case CredentialChanged:
		return strings.TrimSpace("credentials: " + e.Detail + " " + e.Credential)
	case RunStarted:
		what := "run started"
		if len(e.Command) > 0 {
			what += ": " + strings.Join(e.Command, " ")
		}
		return what + e.levelWords()
	}
	if e.Kind == SandboxErased {
		return "sandbox erased: " + receipt.Words(e.Erased)
	}
	what := strings.ReplaceAll(string(e.Kind), ".", " ")
	if e.Kind == RunEnded && len(e.Weaker) > 0 {
		what += e.levelWords()
	}
	for _, more := range []string{e.Host, strings.Join(e.Command, " "), e.Detail, e.Error} {
		if more != "" {
			what += ": " + more
		}
	}
	return what
}

// levelWords is how strong the wall was, with what made it weaker.
func (e *Event) levelWords() string {
	if e.Isolation == "" {
		return ""
	}
	return " (" + strings.Join(append([]string{e.Isolation}, e.Weaker...), ", ") + ")"
}

func (e *Event) crossingWords() string {
	if e.Repository != "" {
		words := []string{"git", e.Access, e.Repository}
		if len(e.Refs) > 0 {
			words = append(words, "("+strings.Join(e.Refs, ", ")+")")
		}
		return strings.Join(words, " ") + " at " + net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
	}
	where := e.Host
	if where == "" {
		where = e.Address
	}
	if _, _, err := net.SplitHostPort(where); err != nil && e.Port != 0 {
		where = net.JoinHostPort(where, strconv.Itoa(int(e.Port)))
	}
	words := []string{e.Protocol}
	if e.Method != "" {
		words = append(words, e.Method)
	}
	return strings.TrimSpace(strings.Join(append(words, where+e.Path), " "))
}

func (e *Event) outcomeWords() string {
	var parts []string
	if e.Status != 0 {
		parts = append(parts, fmt.Sprintf("status %d", e.Status))
	}
	if e.Error != "" {
		parts = append(parts, e.Error)
	}
	parts = append(parts, SizeWords(e.BytesIn)+" in", SizeWords(e.BytesOut)+" out", (time.Duration(e.Millis) * time.Millisecond).String())
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

// SizeWords writes a size with at most four digits and a decimal unit.
func SizeWords(n int64) string {
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
