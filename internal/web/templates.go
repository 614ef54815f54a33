package web

import (
	"crypto/rand"
	"fmt"
	"html/template"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/api"
)

// parse makes one set of templates for each page: the frame, the parts that pages share, and the page itself.
func (p *Pages) parse() (map[string]*template.Template, error) {
	shared, err := template.New("").Funcs(p.functions()).ParseFS(files, "templates/shared/*.html")
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		return nil, err
	}
	out := map[string]*template.Template{}
	for _, name := range names {
		t, err := shared.Clone()
		if err != nil {
			return nil, err
		}
		if t, err = t.ParseFS(files, name); err != nil {
			return nil, err
		}
		out[strings.TrimSuffix(path.Base(name), ".html")] = t
	}
	return out, nil
}

func (p *Pages) functions() template.FuncMap {
	return template.FuncMap{
		"inert": inert, "inertLine": inertLine, "inertBlock": inertBlock, "plain": plain, "hides": hides, "asset": p.assetPath, "path": localURL, "sentence": sentence,
		"ago": func(t time.Time) string { return ago(p.clock(), t) }, "when": when, "stamp": stamp, "span": span, "bytes": byteSize, "count": count,
		"chip": chipFor, "input": newInput, "join": strings.Join, "command": joinCommand, "roles": api.Roles, "date": func(t time.Time) string { return t.UTC().Format("2006-01-02") },
		"arg": newArgument, "contains": slices.Contains[[]string], "zero": func(t time.Time) bool { return t.IsZero() }, "plus": func(a, b int) int { return a + b },
		"navitem": newNavItem, "entry": func(v *view, g *groupData) *view { out := *v; out.Data = g; return &out }, "datum": func(x any) *view { return &view{Data: x} },
		"editor": newEditor, "pick": newPick, "joinpath": path.Join,
		"query": func(pairs ...string) string { return "?" + pairsQuery(pairs) },
	}
}

// argument hands two values to a template that takes one.
type argument struct {
	View *view
	Item any
}

func newArgument(v *view, item any) argument { return argument{v, item} }

// localURL joins path segments, each escaped.
func localURL(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteString("/" + url.PathEscape(s))
	}
	return b.String()
}

func pairsQuery(pairs []string) string {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q.Encode()
}

// newID is what an error page and the log share.
func newID() string { return strings.ToLower(rand.Text()[:12]) }

// ago says how long ago something was, or how far ahead.
func ago(now, t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t)
	if d < 0 {
		return "in " + span(-d)
	}
	if d < 5*time.Second {
		return "just now"
	}
	return span(d) + " ago"
}

// span is a length of time in its largest unit, rounded down.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// when is a time for people, stamp the same for programs.
func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func byteSize(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1000 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// count groups thousands.
func count(n any) string {
	s := fmt.Sprint(n)
	start := len(s) % 3
	var b strings.Builder
	b.WriteString(s[:start])
	for i := start; i < len(s); i += 3 {
		if b.Len() > 0 && b.String() != "-" {
			b.WriteByte('\u0020')
		}
		b.WriteString(s[i : i+3])
	}
	return b.String()
}

// chip is a state as text and colour.
type chip struct{ Tone, Text string }

var tones = map[string]string{
	"running": "ok", "active": "ok", "allow": "ok", "allowed": "ok", "approved": "ok",
	"starting": "wait", "stopping": "wait", "waiting": "wait", "proposed": "wait", "ask": "wait", "open": "wait", "invited": "wait",
	"failed": "bad", "deny": "bad", "denied": "bad", "refused": "bad", "lost": "bad", "rejected": "bad", "revoked": "bad",
	"suspended": "warn", "paused": "warn", "disabled": "warn", "expired": "warn",
}

// chipFor is the chip of a state. A word that is not ours is shown without a tone.
func chipFor(state any) chip {
	s := fmt.Sprint(state)
	return chip{Tone: tones[s], Text: plain(cut(s, 40))}
}

// input is one field of a form as templates draw it.
type input struct {
	ID, Name, Label, Hint, Kind, Value, Error       string
	Autocomplete, Placeholder, Max, Low, Most, List string
	Required, Focus, Code, Checked                  bool
	Rows                                            string
	Options                                         []option
}

type option struct {
	Value, Text string
	Selected    bool
}

// newInput describes a field. Options are words: required, focus, code, and NAME:VALUE for autocomplete, placeholder, max, min, most, rows, list, id.
// Kind is an input's type, textarea, or select with VALUE=TEXT options as further words.
func newInput(f *form, kind, name, label, hint string, words ...string) input {
	in := input{ID: "f-" + name, Name: name, Label: label, Hint: hint, Kind: kind, Value: f.Value(name), Error: f.Error(name), Rows: "4"}
	if kind == "password" || kind == "file" { // what was typed there is not sent back
		in.Value = ""
	}
	for _, w := range words {
		key, value, _ := strings.Cut(w, ":")
		switch key {
		case "required":
			in.Required = true
		case "focus":
			in.Focus = true
		case "code":
			in.Code = true
		case "autocomplete":
			in.Autocomplete = value
		case "placeholder":
			in.Placeholder = value
		case "max":
			in.Max = value
		case "min":
			in.Low = value
		case "most":
			in.Most = value
		case "rows":
			in.Rows = value
		case "list":
			in.List = value
		case "id":
			in.ID = value
		case "option":
			v, text, _ := strings.Cut(value, "=")
			in.Options = append(in.Options, option{Value: v, Text: text, Selected: in.Value == v})
		case "is":
			in.Checked = f.Has(name, value)
			in.Value = value
		}
	}
	return in
}

// navItem is one entry of the navigation, perhaps with a number.
type navItem struct {
	Href, Text, Icon, Badge string
	Here, Hot               bool
	Number                  int
}

func newNavItem(v *view, section, href, text, badge string) navItem {
	n := navItem{Href: href, Text: text, Icon: section, Badge: badge, Here: v.Section == section}
	switch badge {
	case "review":
		n.Number = v.Counts.Denials + v.Counts.Approvals
		n.Hot = n.Number > 0
	case "running":
		n.Number = v.Counts.Running
	case "agents":
		n.Number = v.Counts.Agents
	case "proposed":
		n.Number = v.Counts.Proposed
		n.Hot = n.Number > 0
	}
	return n
}

// editor is a text area with line numbers.
type editor struct{ ID, Name, Value, Rows string }

func newEditor(id, name, value, rows string) editor { return editor{id, name, value, rows} }

// pick is a choice of one credential.
type pick struct {
	Name, Label, Value, Error string
	List                      []api.Credential
}

func newPick(f *form, name, label string, list []api.Credential) pick {
	return pick{name, label, f.Value(name), f.Error(name), list}
}
