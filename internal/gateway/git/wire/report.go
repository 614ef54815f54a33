package wire

import (
	"bytes"
	"fmt"
	"io"
	"strings"
)

// Result is what became of one command.
type Result struct {
	Ref string
	// Refused says why not, in one line; "" means that it was done.
	Refused string
	// Instead is the ref that was set in its place, From and To its ids; only in a report of version 2.
	Instead  string
	From, To ID
	Forced   bool
}

// Report is the answer to a push (gitprotocol-pack, "Report Status").
type Report struct {
	// Unpack is why the pack was not taken, or "".
	Unpack  string
	Results []Result
}

// Bounds of a report: every command of a push with a long reason, and what servers say besides.
const (
	maxReport  = 8 << 20
	maxResults = maxCommands
)

// appendTo appends the report as pkt-lines with the flush at its end.
func (r *Report) appendTo(b []byte, v2 bool) []byte {
	unpack := "ok"
	if r.Unpack != "" {
		unpack = oneLine(r.Unpack, 1000)
	}
	b = AppendLine(b, "unpack "+unpack+"\n")
	for _, one := range r.Results {
		if one.Refused != "" {
			b = AppendLine(b, "ng "+one.Ref+" "+oneLine(one.Refused, 1000)+"\n")
			continue
		}
		b = AppendLine(b, "ok "+one.Ref+"\n")
		if !v2 || one.Instead == "" {
			continue
		}
		b = AppendLine(b, "option refname "+one.Instead+"\n")
		if one.From.size > 0 {
			b = AppendLine(b, "option old-oid "+one.From.String()+"\n")
		}
		if one.To.size > 0 {
			b = AppendLine(b, "option new-oid "+one.To.String()+"\n")
		}
		if one.Forced {
			b = AppendLine(b, "option forced-update\n")
		}
	}
	return AppendFlush(b)
}

// oneLine makes any text one line of printable characters that terminals do not interpret.
func oneLine(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, text)
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}

// Answer writes the body of an answer to a push in the form that the client can read: in bands where it knows them, else the bare report.
type Answer struct {
	to     io.Writer
	bands  bool
	report bool
	v2     bool
}

// NewAnswer returns an answer to a client with these capabilities.
func NewAnswer(to io.Writer, c Capabilities) *Answer {
	v2 := c.Has("report-status-v2")
	return &Answer{to: to, bands: c.Has("side-band-64k"), report: v2 || c.Has("report-status"), v2: v2}
}

// Readable reports whether the client can be told what became of its push: else only the status of HTTP can say it.
func (a *Answer) Readable() bool { return a.report }

// Bands of gitprotocol-pack, "Packfile Data".
const (
	bandData    = 1
	bandMessage = 2
	bandFatal   = 3
)

// maxBand is the most that one line of a band carries.
const maxBand = maxPayload - 1

// Message shows the person bytes as they are, after "remote: ". Without bands they are dropped.
func (a *Answer) Message(text []byte) error {
	if !a.bands {
		return nil
	}
	return a.band(bandMessage, text)
}

func (a *Answer) band(number byte, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), maxBand)
		line := append(appendLength(nil, n+5), number)
		if _, err := a.to.Write(append(line, data[:n]...)); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// Finish writes the report, and ends the answer.
func (a *Answer) Finish(r *Report) error {
	var body []byte
	if a.report {
		body = r.appendTo(nil, a.v2)
	}
	if !a.bands {
		_, err := a.to.Write(body)
		return err
	}
	if err := a.band(bandData, body); err != nil {
		return err
	}
	_, err := a.to.Write(AppendFlush(nil))
	return err
}

// ReadReport reads an upstream's answer to a push that asked for these capabilities. What it says to the person goes to message as it comes.
func ReadReport(r io.Reader, c Capabilities, message func([]byte) error) (*Report, error) {
	if !c.Has("side-band-64k") {
		return readReport(r)
	}
	lines := NewReader(r, maxReport)
	var data bytes.Buffer
	for {
		kind, payload, err := lines.Next()
		if err != nil {
			return nil, early(err)
		}
		if kind == Flush {
			return readReport(&data)
		}
		if kind != Data || len(payload) == 0 {
			return nil, ErrSyntax
		}
		switch payload[0] {
		case bandData:
			if data.Len()+len(payload) > maxReport/4 {
				return nil, ErrTooLong
			}
			data.Write(payload[1:])
		case bandMessage:
			err = message(payload[1:])
		case bandFatal:
			if err = message(payload[1:]); err == nil {
				err = ErrFatal
			}
		default:
			err = ErrSyntax
		}
		if err != nil {
			return nil, err
		}
	}
}

// ErrFatal is of an upstream that gave up in the middle of an answer.
var ErrFatal = fmt.Errorf("the upstream gave up")

func readReport(r io.Reader) (*Report, error) {
	lines := NewReader(r, maxReport)
	report := &Report{}
	for first := true; ; first = false {
		kind, payload, err := lines.Next()
		if err == io.EOF && first {
			return report, nil // nothing was asked for, or there was nothing to say
		}
		if err != nil {
			return nil, early(err)
		}
		if kind == Flush {
			return report, nil
		}
		if kind != Data {
			return nil, ErrSyntax
		}
		if err := report.line(string(chomp(payload)), first); err != nil {
			return nil, err
		}
	}
}

func (r *Report) line(text string, first bool) error {
	word, rest, _ := strings.Cut(text, " ")
	switch {
	case first && word == "unpack":
		if rest != "ok" {
			r.Unpack = rest
		}
	case first:
		return ErrSyntax
	case (word == "ok" || word == "ng") && len(r.Results) == maxResults:
		return ErrTooLong
	case word == "ok":
		r.Results = append(r.Results, Result{Ref: rest})
	case word == "ng":
		ref, why, _ := strings.Cut(rest, " ")
		if why == "" {
			why = "the upstream refused it"
		}
		r.Results = append(r.Results, Result{Ref: ref, Refused: why})
	case word == "option" && len(r.Results) > 0:
		return r.Results[len(r.Results)-1].option(rest)
	default:
		return ErrSyntax
	}
	return nil
}

// option takes what version 2 adds to a result.
func (r *Result) option(text string) error {
	key, value, _ := strings.Cut(text, " ")
	switch key {
	case "refname":
		if !ValidRef(value) {
			return ErrSyntax
		}
		r.Instead = value
	case "old-oid", "new-oid":
		id, ok := ParseID(SHA1, []byte(value))
		if !ok {
			id, ok = ParseID(SHA256, []byte(value))
		}
		if !ok {
			return ErrSyntax
		}
		if key == "old-oid" {
			r.From = id
		} else {
			r.To = id
		}
	case "forced-update":
		r.Forced = true
	}
	return nil
}
