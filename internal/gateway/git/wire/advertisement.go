package wire

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
)

// maxAdvertisement bounds the list of refs: a million of them.
const maxAdvertisement = 256 << 20

// FilterAdvertisement copies the list of refs for a push, made anew from what was understood, with those capabilities that a push may use here and no-thin:
// what is judged must not depend on objects that only the upstream has (gitprotocol-capabilities). It returns what the upstream can do.
func FilterAdvertisement(to io.Writer, from io.Reader) (Capabilities, error) {
	lines := NewReader(from, maxAdvertisement)
	w := bufio.NewWriterSize(to, 64<<10)
	if err := service(lines, "git-receive-pack"); err != nil {
		return nil, err
	}
	begin := AppendFlush(AppendLine(nil, "# service=git-receive-pack\n"))
	if _, err := w.Write(begin); err != nil {
		return nil, err
	}
	var had Capabilities
	var format Format
	var line []byte
	for first := true; ; {
		kind, payload, err := lines.Next()
		if err != nil {
			return nil, early(err)
		}
		if kind == Flush && !first {
			break
		}
		if kind != Data {
			return nil, ErrSyntax
		}
		text := string(chomp(payload))
		if first && text == "version 1" {
			if _, err := w.Write(AppendLine(nil, "version 1\n")); err != nil {
				return nil, err
			}
			continue
		}
		if first {
			ref, list, _ := strings.Cut(text, "\x00")
			if had, err = parseCapabilities(list); err != nil {
				return nil, err
			}
			if format, err = had.Format(); err != nil {
				return nil, err
			}
			text = ref
		}
		if err := advertised(text, format); err != nil {
			return nil, err
		}
		if _, ref, _ := strings.Cut(text, " "); !first && othersRef(ref) {
			continue
		}
		if first {
			text += "\x00" + append(had.ForPush(), "no-thin").String()
			first = false
		}
		if len(text) >= maxPayload {
			return nil, ErrTooLong
		}
		line = AppendLine(line[:0], text+"\n")
		if _, err := w.Write(line); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(AppendFlush(nil)); err != nil {
		return nil, err
	}
	return had, w.Flush()
}

// othersRef reports whether an advertised ref is not for those who push: objects that the server has from elsewhere, and what others have proposed. A client
// that is told of them leaves their objects out of its pack, and then builds on what is on no branch.
func othersRef(ref string) bool {
	return ref == ".have" || strings.HasPrefix(ref, "refs/pull/") || strings.HasPrefix(ref, "refs/merge-requests/") || strings.HasPrefix(ref, "refs/changes/")
}

// service reads what stands before an advertisement over HTTP (gitprotocol-http).
func service(lines *Reader, name string) error {
	kind, payload, err := lines.Next()
	if err != nil {
		return early(err)
	}
	if kind != Data || string(chomp(payload)) != "# service="+name {
		return ErrSyntax
	}
	if kind, _, err = lines.Next(); err != nil {
		return early(err)
	}
	if kind != Flush {
		return ErrSyntax
	}
	return nil
}

// advertised checks a line ID SP REF, or shallow SP ID.
func advertised(text string, f Format) error {
	first, ref, ok := strings.Cut(text, " ")
	if first == "shallow" {
		first, ref = ref, "capabilities^{}"
	}
	if _, valid := ParseID(f, []byte(first)); !ok || !valid || ref == "" || len(ref) > maxRef+3 || strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return ErrSyntax
	}
	return nil
}

// Server is what an upstream says that it can do in version 2 (gitprotocol-v2, "Capability Advertisement").
type Server struct {
	Format Format
	// LsRefs and Fetch say that the command is there; Filter and Shallow that fetch can do it.
	LsRefs, Fetch, Filter, Shallow bool
}

// ErrOldServer is of an upstream that does not speak version 2.
var ErrOldServer = fmt.Errorf("the upstream does not speak version 2 of Git's protocol")

// ReadServer reads the answer to info/refs?service=git-upload-pack with Git-Protocol: version=2.
func ReadServer(r io.Reader) (Server, error) {
	lines := NewReader(r, 1<<20)
	s := Server{Format: SHA1}
	kind, payload, err := lines.Next()
	if err == nil && kind == Data && bytes.HasPrefix(payload, []byte("# service=")) { // some servers say it in version 2 as well
		if kind, _, err = lines.Next(); err == nil && kind == Flush {
			kind, payload, err = lines.Next()
		}
	}
	if err != nil {
		return Server{}, early(err)
	}
	if kind != Data || string(chomp(payload)) != "version 2" {
		return Server{}, ErrOldServer
	}
	for {
		kind, payload, err := lines.Next()
		if err != nil {
			return Server{}, early(err)
		}
		if kind == Flush {
			return s, nil
		}
		if kind != Data {
			return Server{}, ErrSyntax
		}
		name, value, _ := strings.Cut(string(chomp(payload)), "=")
		switch name {
		case "ls-refs":
			s.LsRefs = true
		case "fetch":
			s.Fetch = true
			for feature := range strings.FieldsSeq(value) {
				s.Filter = s.Filter || feature == "filter"
				s.Shallow = s.Shallow || feature == "shallow"
			}
		case "object-format":
			if s.Format, err = ParseFormat(value); err != nil {
				return Server{}, err
			}
		}
	}
}
