package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// The bounds of a document. Ours have four levels, and some hundred members and elements.
const (
	deepest   = 32
	maxPieces = 10_000 // members of objects and elements of arrays, all together: what comes after does more work for each than it has bytes
)

// strict refuses documents that two readers could read differently: the same member twice, or in capitals, which encoding/json takes for the member itself.
// It refuses those of too many parts too, after as many: it reads no further. What may be JSON to the reader that comes after, under whatever name, is looked at.
func strict(r *http.Request, text []byte) error {
	media := r.Header.Get("Content-Type")
	if len(text) == 0 || media != "" && !strings.Contains(strings.ToLower(media), "json") {
		return nil
	}
	u := &uniqueness{d: json.NewDecoder(bytes.NewReader(text))}
	err := u.value(0)
	if errors.Is(err, errPieces) {
		return &refusal{status: http.StatusRequestEntityTooLarge, code: codeTooLarge, detail: "the request has too many members and elements",
			hint: fmt.Sprintf("send no more than %d in one request", maxPieces)}
	}
	if err != nil {
		return &refusal{status: http.StatusBadRequest, code: codeValidation, detail: "the request is not valid JSON"}
	}
	return nil
}

var errPieces = errors.New("too many members and elements")

// uniqueness reads a document and keeps nothing of it but the names of the objects that it is in.
type uniqueness struct {
	d      *json.Decoder
	pieces int
}

// value reads one value.
func (u *uniqueness) value(depth int) error {
	t, err := u.d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth > deepest {
		return fmt.Errorf("deeper than %d", deepest)
	}
	seen := map[string]bool{}
	for u.d.More() {
		if u.pieces++; u.pieces > maxPieces {
			return errPieces
		}
		if open == '{' {
			t, err := u.d.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string)
			if seen[name] || depth == 0 && name != strings.ToLower(name) {
				return errors.New("member twice, or in capitals")
			}
			seen[name] = true
		}
		if err := u.value(depth + 1); err != nil {
			return err
		}
	}
	_, err = u.d.Token()
	return err
}
