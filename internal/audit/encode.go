package audit

import (
	"encoding/json"
	"strconv"
)

// appendMembers appends the members of a clean event from kind to detail, each with a comma before it, byte for byte as json.Marshal writes them.
// It is written out because every crossing pays for it twice; TestAppendMembers holds it to the struct.
func (e *Event) appendMembers(b []byte) []byte {
	b = appendText(append(b, `,"kind":`...), string(e.Kind))
	b = member(b, `,"run":`, string(e.Run))
	b = member(b, `,"tenant":`, e.Tenant)
	b = member(b, `,"agent":`, e.Agent)
	b = member(b, `,"principal":`, e.Principal)
	b = number(b, `,"crossing":`, e.Crossing)
	b = member(b, `,"protocol":`, e.Protocol)
	b = member(b, `,"access":`, e.Access)
	b = member(b, `,"host":`, e.Host)
	b = member(b, `,"address":`, e.Address)
	b = number(b, `,"port":`, uint64(e.Port))
	b = member(b, `,"method":`, e.Method)
	b = member(b, `,"path":`, e.Path)
	b = member(b, `,"verdict":`, e.Verdict)
	b = member(b, `,"rule":`, e.Rule)
	b = member(b, `,"reason":`, e.Reason)
	b = member(b, `,"repository":`, e.Repository)
	b = texts(b, `,"refs":`, e.Refs)
	b = member(b, `,"process":`, e.Process)
	b = integer(b, `,"pid":`, int64(e.PID))
	b = number(b, `,"count":`, e.Count)
	b = member(b, `,"credential":`, e.Credential)
	b = member(b, `,"grant":`, e.Grant)
	b = integer(b, `,"redactions":`, e.Redactions)
	b = member(b, `,"type":`, e.Type)
	b = member(b, `,"digest":`, e.Digest)
	b = integer(b, `,"status":`, int64(e.Status))
	b = integer(b, `,"bytes_in":`, e.BytesIn)
	b = integer(b, `,"bytes_out":`, e.BytesOut)
	b = integer(b, `,"millis":`, e.Millis)
	b = member(b, `,"error":`, e.Error)
	b = member(b, `,"isolation":`, e.Isolation)
	b = texts(b, `,"weaker":`, e.Weaker)
	b = texts(b, `,"command":`, e.Command)
	if len(e.Erased) > 0 { // once a run, so package json may do it
		items, _ := json.Marshal(e.Erased) // texts and times always encode
		b = append(append(b, `,"erased":`...), items...)
	}
	return member(b, `,"detail":`, e.Detail)
}

func member(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendText(append(b, name...), value)
}

func number(b []byte, name string, value uint64) []byte {
	if value == 0 {
		return b
	}
	return strconv.AppendUint(append(b, name...), value, 10)
}

func integer(b []byte, name string, value int64) []byte {
	if value == 0 {
		return b
	}
	return strconv.AppendInt(append(b, name...), value, 10)
}

func texts(b []byte, name string, values []string) []byte {
	if len(values) == 0 {
		return b
	}
	b = append(append(b, name...), '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendText(b, v)
	}
	return append(b, ']')
}

// appendText appends a string of JSON. Texts that need no escape, as nearly all do, are copied; the rest is left to package json.
func appendText(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s) // a string always encodes
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
