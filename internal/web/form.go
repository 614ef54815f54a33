package web

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// form is what was typed, and what is wrong with it, so that a page can be shown again with both.
type form struct {
	values  url.Values
	Errors  map[string]string // by field
	Problem string            // with the whole
	Hint    string
}

func newForm(values url.Values) *form { return &form{values: values, Errors: map[string]string{}} }

// prefilled makes a form from pairs of names and values.
func prefilled(pairs ...string) *form {
	values := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		values.Add(pairs[i], pairs[i+1])
	}
	return newForm(values)
}

// Value is what a field holds.
func (f *form) Value(name string) string { return f.values.Get(name) }

// text is a field without white space around.
func (f *form) text(name string) string { return strings.TrimSpace(f.values.Get(name)) }

// block is a text area's content with the line ends that files have.
func (f *form) block(name string) string {
	return strings.ReplaceAll(f.values.Get(name), "\r\n", "\n")
}

// list is a field with one entry a line, or several with commas between.
func (f *form) list(name string) []string {
	return strings.FieldsFunc(f.values.Get(name), func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
}

// Has says whether one of the field's values is value: for tick boxes and choices.
func (f *form) Has(name, value string) bool {
	return slices.Contains(f.values[name], value)
}

// Error is what is wrong with a field.
func (f *form) Error(name string) string { return f.Errors[name] }

// Bad says whether anything is wrong.
func (f *form) Bad() bool { return f.Problem != "" || len(f.Errors) > 0 }

// wrong notes what is wrong with a field.
func (f *form) wrong(name, text string) {
	if f.Errors[name] == "" {
		f.Errors[name] = text
	}
}

// knows names fields that a browser leaves out when they are empty, so that what is wrong with them finds its place.
func (f *form) knows(names ...string) {
	for _, name := range names {
		if _, here := f.values[name]; !here {
			f.values[name] = nil
		}
	}
}

// need notes fields that are empty.
func (f *form) need(names ...string) bool {
	for _, name := range names {
		if f.text(name) == "" {
			f.wrong(name, "This is needed.")
		}
	}
	return !f.Bad()
}

// take notes an error of an operation at the field that it names, or over the form, and returns nil. Errors that the person can do nothing about in
// this form are returned.
func (f *form) take(err error) error {
	switch fault.KindOf(err) {
	case fault.Internal, fault.Unauthenticated, fault.NotFound:
		return err
	}
	public := fault.Public(err)
	if all := mistakes(err); all != "" {
		if _, here := f.values["rule"]; here { // a policy's text has its own list beside it
			f.wrong("rule", all)
			return nil
		}
	}
	for name := range f.values {
		rest, ok := strings.CutPrefix(public, name)
		if ok && rest != "" && (rest[0] == ':' || rest[0] == ' ') {
			text := sentence(strings.TrimLeft(rest, ": "))
			if hint := fault.HintOf(err); hint != "" {
				text += " " + sentence(hint)
			}
			f.wrong(name, text)
			return nil
		}
	}
	for _, about := range abouts {
		if _, here := f.values[about.field]; here && strings.Contains(public, about.words) {
			f.wrong(about.field, strings.TrimSpace(sentence(public)+" "+sentence(fault.HintOf(err))))
			return nil
		}
	}
	f.Problem, f.Hint = sentence(public), sentence(fault.HintOf(err))
	return nil
}

// mistakes is what is wrong with a rule or a policy, line by line.
func mistakes(err error) string {
	problems, ok := errors.AsType[*policy.Problems](err)
	if !ok {
		return ""
	}
	var all []string
	for _, p := range problems.List {
		if !p.Warning {
			all = append(all, p.String())
		}
	}
	return strings.Join(all, "\n")
}

// abouts are words by which an error tells its field where it does not begin with it. A miss only moves the sentence to the top of the form.
var abouts = []struct{ words, field string }{
	{"be a name", "name"}, {"of that name", "name"}, {"the description", "description"}, {"the command", "command"}, {"the name of a variable", "environment"},
	{"the variable", "environment"}, {"email address", "email"}, {"policy has a mistake", "text"}, {"password", "password"}, {"role", "role"},
}

// sentence makes what faults say, lower case and without a full stop, a sentence.
func sentence(s string) string {
	if s == "" {
		return ""
	}
	first, size := utf8.DecodeRuneInString(s)
	s = string(unicode.ToUpper(first)) + s[size:]
	if last := s[len(s)-1]; last != '.' && last != '!' && last != '?' {
		s += "."
	}
	return s
}
