package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/receipt"
)

// filled returns an event in which every field has a value, so that a new field cannot be forgotten.
func filled(t *testing.T, text string) Event {
	t.Helper()
	var e Event
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(text)
		case reflect.Int, reflect.Int64:
			f.SetInt(-int64(i) - 1)
		case reflect.Uint16, reflect.Uint64:
			f.SetUint(uint64(i) + 1)
		case reflect.Slice:
			if f.Type() == reflect.TypeFor[[]receipt.Item]() {
				f.Set(reflect.ValueOf([]receipt.Item{{What: text, How: text, Checked: receipt.Gone, At: time.Unix(1, 5e6).UTC()}, {Problem: text}}))
			} else {
				f.Set(reflect.ValueOf([]string{text, "", text}))
			}
		case reflect.Struct: // the time, which has its place elsewhere
		default:
			t.Fatalf("field %s has a kind that appendMembers does not know", v.Type().Field(i).Name)
		}
	}
	return e
}

// reference is what package json writes between time and prev.
func reference(t *testing.T, e Event) []byte {
	t.Helper()
	e.Seq, e.Time, e.Prev, e.Hash = 0, time.Time{}, "", ""
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	data, ok1 := bytes.CutPrefix(data, []byte(`{"seq":0,"time":"0001-01-01T00:00:00Z"`))
	data, ok2 := bytes.CutSuffix(data, []byte(`,"prev":"","hash":""}`))
	if !ok1 || !ok2 {
		t.Fatalf("the event's form is %s", data)
	}
	return data
}

func TestAppendMembers(t *testing.T) {
	events := map[string]Event{"empty": {}, "kind only": {Kind: RunEnded}, "empty lists": {Command: []string{}, Weaker: []string{}}}
	for _, text := range []string{"plain", "", `"quoted" \ back`, "<a href=x>&amp;", "ümlaut …", "\u2028 line", "tab\tend", "bad \xff byte", "\x7f"} {
		events["filled with "+text] = filled(t, text)
	}
	for name, e := range events {
		if got, want := e.appendMembers(nil), reference(t, e); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}

func FuzzAppendMembers(f *testing.F) {
	f.Add("GET", "a.example.com", "/<&>\"\\", int64(-3), uint64(7))
	f.Fuzz(func(t *testing.T, method, host, path string, in int64, count uint64) {
		e := Event{Kind: CrossingDecided, Method: method, Host: host, Path: path, BytesIn: in, Count: count, Command: []string{host, path}}
		if got, want := e.appendMembers(nil), reference(t, e); !bytes.Equal(got, want) {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
	})
}
