package lfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sumOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// FuzzReadBatch: what is read is within the bounds, and is read again from what goes to the upstream.
func FuzzReadBatch(f *testing.F) {
	f.Add([]byte(`{"operation":"download","transfers":["basic"],"ref":{"name":"refs/heads/main"},"objects":[{"oid":"` + hello + `","size":123}],"hash_algo":"sha256"}`))
	f.Add([]byte(`{"operation":"upload","objects":[{"oid":"` + hello + `","size":9},{"oid":"` + empty + `","size":0}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := ReadBatch(bytes.NewReader(body))
		if err != nil {
			if !cmp.Equal(b, Batch{}) {
				t.Fatalf("%+v with %v", b, err)
			}
			return
		}
		seen := map[string]bool{}
		for _, o := range b.Objects {
			if !validOID(o.OID) || o.Size < 0 || seen[o.OID] {
				t.Fatalf("%+v", b)
			}
			seen[o.OID] = true
		}
		if len(seen) == 0 || len(seen) > maxObjects || b.Access() == 0 {
			t.Fatalf("%+v", b)
		}
		again, err := ReadBatch(bytes.NewReader(b.Encode()))
		if err != nil || !cmp.Equal(again, b) {
			t.Fatalf("%s is read as %+v, %v, not %+v", b.Encode(), again, err, b)
		}
	})
}

// ours is all that an answer can be made of: what was asked, tokens, numbers, and sentences that are in the source.
var ours = regexp.MustCompile(`^\{"transfer":"basic","objects":\[` +
	`(,?\{"oid":"` + hello + `","size":5(,"actions":\{(,?"(download|upload|verify)":\{"href":"http://git\.cofferdam\.internal/_lfs/[A-Z2-7]{26,}","expires_in":[0-9]{1,4}\})+\})?` +
	`(,"error":\{"code":[45][0-9][0-9],"message":"[a-zA-Z0-9 :,'-]+"\})?\})+\],"hash_algo":"sha256"\}$`)

// FuzzRewrite: whatever an upstream answers, no byte of what it says gets inside: the answer is of one fixed form.
func FuzzRewrite(f *testing.F) {
	f.Add(true, []byte(answerWith(`"actions":`+secretly("download", `,"expires_in":60`))))
	f.Add(false, []byte(answerWith(`"actions":`+secretly("upload", `,"expires_at":"2030-01-01T00:00:00Z"`))))
	f.Add(true, []byte(answerWith(`"error":{"code":404,"message":"zq9 does not exist"}`)))
	f.Add(true, []byte(`{"objects":[{"oid":"`+hello+`","_links":{"download":{"href":"https://zq9/"}}}]}`))
	f.Fuzz(func(t *testing.T, download bool, answer []byte) {
		b := Batch{Operation: Upload, Objects: []Object{{hello, 5}}}
		if download {
			b.Operation = Download
		}
		table := NewTable()
		out, err := table.Rewrite(b, bytes.NewReader(answer), "r", base, everywhere)
		if err != nil {
			if out != nil || table.Len() != 0 || bytes.Contains(answer, []byte("zq9")) && strings.Contains(err.Error(), "zq9") {
				t.Fatalf("%s, %v", out, err)
			}
			return
		}
		if !ours.Match(out) {
			t.Fatalf("%s", out)
		}
		var got rewritten
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Objects) != 1 || len(got.Objects[0].Actions) != table.Len() {
			t.Fatalf("%s, %d held", out, table.Len())
		}
		for _, a := range got.Objects[0].Actions {
			token := strings.TrimPrefix(a.Href, base)
			n := 0
			for _, method := range b.Operation.methods() {
				if held, ok := table.Take(token, method); ok {
					if n++; held.URL.Scheme != "https" || held.URL.Host == "" || held.URL.User != nil {
						t.Fatalf("%s", held.URL)
					}
				}
			}
			if n != 1 {
				t.Fatalf("%s is good for %d methods", token, n)
			}
		}
	})
}
