package lfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// hello and empty are objects: the SHA-256 of "hello" and of nothing.
const (
	hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	base  = "http://git.cofferdam.internal/_lfs/"
)

func TestRecognise(t *testing.T) {
	for _, c := range []struct {
		method, rest string
		want         Call
		access       policy.Access
	}{
		{"POST", "info/lfs/objects/batch", Call{Kind: BatchObjects}, policy.NoAccess},
		{"GET", "info/lfs/locks", Call{Kind: ListLocks}, policy.ReadAccess},
		{"POST", "info/lfs/locks", Call{Kind: CreateLock}, policy.WriteAccess},
		{"POST", "info/lfs/locks/verify", Call{Kind: VerifyLocks}, policy.WriteAccess},
		{"POST", "info/lfs/locks/17/unlock", Call{Kind: Unlock, ID: "17"}, policy.WriteAccess},
		{"POST", "info/lfs/locks/verify/unlock", Call{Kind: Unlock, ID: "verify"}, policy.WriteAccess},
		{"POST", "info/lfs/objects/" + hello + "/verify", Call{Kind: VerifyObject, ID: hello}, policy.WriteAccess},
		{"GET", "info/lfs/objects/batch", Call{}, policy.NoAccess},
		{"post", "info/lfs/objects/batch", Call{}, policy.NoAccess},
		{"PUT", "info/lfs/locks", Call{}, policy.NoAccess},
		{"HEAD", "info/lfs/locks", Call{}, policy.NoAccess},
		{"POST", "info/lfs/objects/batch/", Call{}, policy.NoAccess},
		{"POST", "info/lfs//objects/batch", Call{}, policy.NoAccess},
		{"POST", "INFO/lfs/objects/batch", Call{}, policy.NoAccess},
		{"POST", "/info/lfs/objects/batch", Call{}, policy.NoAccess},
		{"POST", "objects/batch", Call{}, policy.NoAccess},
		{"POST", "info/lfs/", Call{}, policy.NoAccess},
		{"POST", "", Call{}, policy.NoAccess},
		{"GET", "info/lfs/objects/" + hello, Call{}, policy.NoAccess},
		{"POST", "info/lfs/objects/" + strings.ToUpper(hello) + "/verify", Call{}, policy.NoAccess},
		{"GET", "info/lfs/locks/17/unlock", Call{}, policy.NoAccess},
		{"POST", "info/lfs/locks//unlock", Call{}, policy.NoAccess},
		{"POST", "info/lfs/locks/../unlock", Call{}, policy.NoAccess},
		{"POST", "info/lfs/locks/a%2fb/unlock", Call{}, policy.NoAccess},
		{"POST", "info/lfs/locks/a?b/unlock", Call{}, policy.NoAccess},
		{"POST", "info/lfs/locks/a/b/unlock", Call{}, policy.NoAccess},
	} {
		got, ok := Recognise(c.method, c.rest)
		if got != c.want || ok != (c.want.Kind != 0) || got.Access() != c.access {
			t.Errorf("%s %s: got %+v, %v, %v, want %+v, %v", c.method, c.rest, got, ok, got.Access(), c.want, c.access)
		}
	}
}

func TestKindString(t *testing.T) {
	seen := map[string]bool{}
	for k := range Unlock + 2 {
		seen[k.String()] = true
	}
	if len(seen) != int(Unlock+2) || Kind(0).String() != "kind(0)" || Unlock.String() != "unlock" || Download.String() != "download" || Upload.String() != "upload" {
		t.Errorf("%v", seen)
	}
	for _, o := range []Operation{Download, Upload} {
		if got, err := ParseOperation(o.String()); got != o || err != nil {
			t.Errorf("%v: %v, %v", o, got, err)
		}
	}
	if _, err := ParseOperation(Operation(0).String()); err == nil {
		t.Error("no operation is one")
	}
}

func TestReadBatch(t *testing.T) {
	object := func(oid string, size any) string { return fmt.Sprintf(`{"oid":%q,"size":%v}`, oid, size) }
	many := strings.Repeat(object(hello, 5)+",", maxObjects)
	for name, c := range map[string]struct {
		body string
		want Batch // none: refused
	}{
		"download": {`{"operation":"download","objects":[` + object(hello, 5) + `]}`, Batch{Download, "", []Object{{hello, 5}}}},
		"as git-lfs 3.3 asks": {`{"operation":"upload","objects":[` + object(hello, 5) + `],"transfers":["lfs-standalone-file","basic","ssh"],` +
			`"ref":{"name":"refs/heads/main"},"hash_algo":"sha256"}`, Batch{Upload, "refs/heads/main", []Object{{hello, 5}}}},
		"nothing":                    {`{"operation":"download","objects":[` + object(empty, 0) + `],"ref":null}`, Batch{Download, "", []Object{{empty, 0}}}},
		"twice":                      {`{"operation":"download","objects":[` + object(hello, 5) + `,` + object(hello, 5) + `]}`, Batch{Download, "", []Object{{hello, 5}}}},
		"as many as there may be":    {`{"operation":"download","objects":[` + strings.TrimSuffix(many, ",") + `]}`, Batch{Download, "", []Object{{hello, 5}}}},
		"unknown fields":             {`{"operation":"download","objects":[{"oid":"` + hello + `","size":5,"actions":{}}],"x":1}`, Batch{Download, "", []Object{{hello, 5}}}},
		"one too many":               {`{"operation":"download","objects":[` + many + object(hello, 5) + `]}`, Batch{}},
		"twice, two sizes":           {`{"operation":"download","objects":[` + object(hello, 5) + `,` + object(hello, 6) + `]}`, Batch{}},
		"no operation":               {`{"objects":[` + object(hello, 5) + `]}`, Batch{}},
		"another operation":          {`{"operation":"verify","objects":[` + object(hello, 5) + `]}`, Batch{}},
		"operation in capitals":      {`{"operation":"Download","objects":[` + object(hello, 5) + `]}`, Batch{}},
		"no objects":                 {`{"operation":"download","objects":[]}`, Batch{}},
		"short id":                   {`{"operation":"download","objects":[` + object("12345678", 5) + `]}`, Batch{}},
		"id in capitals":             {`{"operation":"download","objects":[` + object(strings.ToUpper(hello), 5) + `]}`, Batch{}},
		"id with a path":             {`{"operation":"download","objects":[` + object("../"+hello[3:], 5) + `]}`, Batch{}},
		"nothing, other id":          {`{"operation":"upload","objects":[` + object(hello, 0) + `]}`, Batch{}},
		"something, id of nothing":   {`{"operation":"upload","objects":[` + object(empty, 1) + `]}`, Batch{}},
		"negative size":              {`{"operation":"download","objects":[` + object(hello, -1) + `]}`, Batch{}},
		"huge size":                  {`{"operation":"download","objects":[` + object(hello, "1e30") + `]}`, Batch{}},
		"size in words":              {`{"operation":"download","objects":[` + object(hello, `"5"`) + `]}`, Batch{}},
		"no basic transfer":          {`{"operation":"download","transfers":["ssh"],"objects":[` + object(hello, 5) + `]}`, Batch{}},
		"another hash":               {`{"operation":"download","hash_algo":"md5","objects":[` + object(hello, 5) + `]}`, Batch{}},
		"short ref":                  {`{"operation":"upload","ref":{"name":"main"},"objects":[` + object(hello, 5) + `]}`, Batch{}},
		"ref with a control":         {`{"operation":"upload","ref":{"name":"refs/heads/a\nb"},"objects":[` + object(hello, 5) + `]}`, Batch{}},
		"two values":                 {`{"operation":"download","objects":[` + object(hello, 5) + `]}{}`, Batch{}},
		"not JSON":                   {`operation=download`, Batch{}},
		"empty":                      {``, Batch{}},
		"longer than a batch can be": {`{"operation":"download","x":"` + strings.Repeat("x", maxRequest) + `","objects":[` + object(hello, 5) + `]}`, Batch{}},
	} {
		got, err := ReadBatch(strings.NewReader(c.body))
		if (err == nil) != (c.want.Operation != 0) || !cmp.Equal(got, c.want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, c.want)
		}
		if err != nil && (fault.KindOf(err) == fault.Internal || strings.ContainsAny(fault.Public(err), "\n\x1b") || len(fault.Public(err)) > 300) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			again, err := ReadBatch(bytes.NewReader(got.Encode()))
			if err != nil || !cmp.Equal(again, got) {
				t.Errorf("%s: encoded as %s: %v", name, got.Encode(), err)
			}
		}
	}
	if (Batch{}).Access() != policy.NoAccess || (Batch{Operation: Download}).Access() != policy.ReadAccess || (Batch{Operation: Upload}).Access() != policy.WriteAccess {
		t.Error("access")
	}
}

// secretly is an action's JSON with a canary in its URL and in its header.
func secretly(name, more string) string {
	return fmt.Sprintf(`{%q:{"href":"https://objects.test/o?sig=canary-href","header":{"Authorization":"RemoteAuth canary-header","X-Amz-Date":"d","connection":"close","host":"h","Content-Length":"9"}%s}}`, name, more)
}

func answerWith(object string) string {
	return `{"transfer":"basic","objects":[{"oid":"` + hello + `","size":5,` + object + `}]}`
}

func everywhere(*url.URL) error { return nil }

func only(hosts ...string) func(*url.URL) error {
	return func(u *url.URL) error {
		if slices.Contains(hosts, u.Host) {
			return nil
		}
		return errors.New("not " + u.String())
	}
}

// rewritten is the answer as a client reads it.
type rewritten struct {
	Transfer string
	Objects  []struct {
		OID     string
		Size    int64
		Actions map[string]struct {
			Href      string
			Header    map[string]string
			ExpiresIn int64      `json:"expires_in"`
			ExpiresAt *time.Time `json:"expires_at"`
		}
		Error *objectError
	}
}

func rewrite(t *testing.T, table *Table, b Batch, answer string, allow func(*url.URL) error) rewritten {
	t.Helper()
	out, err := table.Rewrite(b, strings.NewReader(answer), "github/acme/site", base, allow)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "canary") || strings.Contains(string(out), "objects.test") {
		t.Fatalf("the upstream's words are in %s", out)
	}
	var got rewritten
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRewrite(t *testing.T) {
	download := Batch{Operation: Download, Objects: []Object{{hello, 5}}}
	upload := Batch{Operation: Upload, Objects: []Object{{hello, 5}}}
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			b       Batch
			object  string
			allow   func(*url.URL) error
			actions []string // sorted
			code    int      // of the error instead
			life    int64    // seconds
		}{
			"download":                  {download, `"actions":` + secretly("download", ""), everywhere, []string{"download"}, 0, 3600},
			"the API's own host":        {download, `"actions":` + secretly("download", ""), only("objects.test"), []string{"download"}, 0, 3600},
			"another host":              {download, `"actions":` + secretly("download", ""), only("other.test"), nil, 403, 0},
			"no host at all":            {download, `"actions":` + secretly("download", ""), nil, nil, 403, 0},
			"upload":                    {upload, `"actions":` + secretly("upload", ""), everywhere, []string{"upload"}, 0, 3600},
			"upload and verify":         {upload, `"actions":` + secretly("upload", "},"+secretly("verify", "")[1:len(secretly("verify", ""))-2]), everywhere, []string{"upload", "verify"}, 0, 3600},
			"there already":             {upload, `"authenticated":true`, everywhere, nil, 0, 0},
			"as before the batch API":   {download, `"_links":` + secretly("download", ""), everywhere, []string{"download"}, 0, 3600},
			"expires_in":                {download, `"actions":` + secretly("download", `,"expires_in":60`), everywhere, []string{"download"}, 0, 60},
			"expires_in, too long":      {download, `"actions":` + secretly("download", `,"expires_in":2147483647`), everywhere, []string{"download"}, 0, 3600},
			"expires_in goes first":     {download, `"actions":` + secretly("download", `,"expires_in":60,"expires_at":"2000-01-01T00:30:00Z"`), everywhere, []string{"download"}, 0, 60},
			"expires_at":                {download, `"actions":` + secretly("download", `,"expires_at":"2000-01-01T00:30:00Z"`), everywhere, []string{"download"}, 0, 1800},
			"expires_at of Go":          {download, `"actions":` + secretly("download", `,"expires_at":"0001-01-01T00:00:00Z"`), everywhere, []string{"download"}, 0, 3600},
			"expired":                   {download, `"actions":` + secretly("download", `,"expires_in":-5`), everywhere, nil, 403, 0},
			"expired long ago":          {download, `"actions":` + secretly("download", `,"expires_at":"1999-01-01T00:00:00Z"`), everywhere, nil, 403, 0},
			"download that uploads":     {download, `"actions":` + secretly("upload", ""), everywhere, nil, 403, 0},
			"download that verifies":    {download, `"actions":` + secretly("verify", ""), everywhere, nil, 403, 0},
			"upload that downloads":     {upload, `"actions":` + secretly("download", ""), everywhere, nil, 403, 0},
			"verify without upload":     {upload, `"actions":` + secretly("verify", ""), everywhere, nil, 403, 0},
			"unknown action":            {upload, `"actions":` + secretly("commit", ""), everywhere, nil, 403, 0},
			"download from nowhere":     {download, `"actions":{}`, everywhere, nil, 404, 0},
			"error":                     {download, `"error":{"code":404,"message":"canary: not here"}`, everywhere, nil, 404, 0},
			"error and action":          {download, `"error":{"code":410,"message":"canary"},"actions":` + secretly("download", ""), everywhere, nil, 410, 0},
			"error that is none":        {download, `"error":{"code":200,"message":"canary"}`, everywhere, nil, 403, 0},
			"plain HTTP":                {download, `"actions":{"download":{"href":"http://objects.test/canary"}}`, everywhere, nil, 403, 0},
			"another scheme":            {download, `"actions":{"download":{"href":"file:///etc/passwd"}}`, everywhere, nil, 403, 0},
			"no scheme":                 {download, `"actions":{"download":{"href":"//objects.test/canary"}}`, everywhere, nil, 403, 0},
			"a path":                    {download, `"actions":{"download":{"href":"/canary"}}`, everywhere, nil, 403, 0},
			"a user":                    {download, `"actions":{"download":{"href":"https://canary@objects.test/"}}`, everywhere, nil, 403, 0},
			"a password":                {download, `"actions":{"download":{"href":"https://u:canary@objects.test/"}}`, everywhere, nil, 403, 0},
			"a fragment":                {download, `"actions":{"download":{"href":"https://objects.test/#canary"}}`, everywhere, nil, 403, 0},
			"no host":                   {download, `"actions":{"download":{"href":"https:///canary"}}`, everywhere, nil, 403, 0},
			"no URL":                    {download, `"actions":{"download":{"href":"https://objects.test/\u0000"}}`, everywhere, nil, 403, 0},
			"no href":                   {download, `"actions":{"download":{}}`, everywhere, nil, 403, 0},
			"long URL":                  {download, `"actions":{"download":{"href":"https://objects.test/` + strings.Repeat("x", maxHref) + `"}}`, everywhere, nil, 403, 0},
			"header that ends a line":   {download, `"actions":{"download":{"href":"https://objects.test/","header":{"X":"a\r\nY: b"}}}`, everywhere, nil, 403, 0},
			"header that has no name":   {download, `"actions":{"download":{"href":"https://objects.test/","header":{"X Y":"a"}}}`, everywhere, nil, 403, 0},
			"header in two spellings":   {download, `"actions":{"download":{"href":"https://objects.test/","header":{"X-Y":"a","x-y":"b"}}}`, everywhere, nil, 403, 0},
			"header longer than may be": {download, `"actions":{"download":{"href":"https://objects.test/","header":{"X":"` + strings.Repeat("x", maxHref) + `"}}}`, everywhere, nil, 403, 0},
		} {
			table := NewTable()
			got := rewrite(t, table, c.b, answerWith(c.object), c.allow)
			if len(got.Objects) != 1 || got.Transfer != "basic" || got.Objects[0].OID != hello || got.Objects[0].Size != 5 {
				t.Fatalf("%s: %+v", name, got)
			}
			o := got.Objects[0]
			if (o.Error != nil) != (c.code != 0) || o.Error != nil && (o.Error.Code != c.code || o.Error.Message == "") || len(o.Actions) != len(c.actions) || table.Len() != len(c.actions) {
				t.Errorf("%s: %+v, error %+v, %d held", name, o, o.Error, table.Len())
				continue
			}
			for _, action := range c.actions {
				a := o.Actions[action]
				token, ours := strings.CutPrefix(a.Href, base)
				method := map[string]string{"download": "GET", "upload": "PUT", "verify": "POST"}[action]
				if !ours || len(token) < 26 || a.Header != nil || a.ExpiresIn != c.life || a.ExpiresAt != nil {
					t.Errorf("%s: %+v", name, a)
				}
				held, ok := table.Take(token, method)
				want := http.Header{"Authorization": {"RemoteAuth canary-header"}, "X-Amz-Date": {"d"}}
				if !ok || held.URL.String() != "https://objects.test/o?sig=canary-href" || !cmp.Equal(held.Header, want) || held.Object != (Object{hello, 5}) ||
					held.Repository != "github/acme/site" || held.Method != method {
					t.Errorf("%s: held %v, %v, %v, %v", name, held.URL, held.Header, held.Object, ok)
				}
				if body := held.Body(); method != "POST" && body != nil || method == "POST" && string(body) != `{"oid":"`+hello+`","size":5}` {
					t.Errorf("%s: body %s", name, body)
				}
			}
		}
	})
}

// TestRewriteObjects: the answer is about what was asked for, in that order, whatever the upstream tells of.
func TestRewriteObjects(t *testing.T) {
	other := strings.Repeat("ab", 32)
	b := Batch{Operation: Download, Objects: []Object{{hello, 5}, {empty, 0}}}
	action := secretly("download", "")
	answer := `{"objects":[{"oid":"` + other + `","size":1,"actions":` + action + `},{"oid":"` + hello + `","size":999,"actions":` + action + `},{"oid":"` + hello + `","size":5,"error":{"code":404}}]}`
	table := NewTable()
	got := rewrite(t, table, b, answer, everywhere)
	if len(got.Objects) != 2 || got.Objects[0].OID != hello || got.Objects[0].Size != 5 || got.Objects[0].Error != nil ||
		got.Objects[1].OID != empty || got.Objects[1].Error == nil || got.Objects[1].Error.Code != 404 || table.Len() != 1 {
		t.Errorf("%+v, %d held", got, table.Len())
	}
	for name, answer := range map[string]string{
		"another transfer": `{"transfer":"ssh","objects":[]}`,
		"another hash":     `{"hash_algo":"md5","objects":[]}`,
		"not JSON":         `<html>canary</html>`,
		"two values":       `{}{}`,
		"bad types":        `{"objects":[{"oid":5}]}`,
		"no end":           `{"objects":[` + strings.Repeat(" ", maxAnswer) + `]}`,
	} {
		out, err := table.Rewrite(b, strings.NewReader(answer), "r", base, everywhere)
		if err == nil || out != nil || fault.KindOf(err) == fault.Internal || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %s, %v", name, out, err)
		}
	}
	if _, err := table.Rewrite(b, iotest.ErrReader(io.ErrUnexpectedEOF), "r", base, everywhere); err == nil {
		t.Error("an answer that breaks off is one")
	}
}

func TestTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable()
		b := Batch{Operation: Download, Objects: []Object{{hello, 5}}}
		give := func(life string) string {
			got := rewrite(t, table, b, answerWith(`"actions":`+secretly("download", life)), everywhere)
			return strings.TrimPrefix(got.Objects[0].Actions["download"].Href, base)
		}
		token := give(`,"expires_in":60`)
		if give("") == token {
			t.Error("the same token twice")
		}
		for name, c := range map[string]struct{ token, method string }{
			"another method": {token, "PUT"}, "lower case": {token, "get"}, "none": {"", "GET"}, "a part": {token[:20], "GET"}, "more": {token + "A", "GET"},
		} {
			if _, ok := table.Take(c.token, c.method); ok {
				t.Errorf("%s: taken", name)
			}
		}
		for range 2 { // clients try again
			a, ok := table.Take(token, "GET")
			if !ok {
				t.Fatal("not taken")
			}
			a.Header.Set("Authorization", "changed")
			a.URL.Host = "changed"
		}
		if a, _ := table.Take(token, "GET"); a.Header.Get("Authorization") == "changed" || a.URL.Host == "changed" {
			t.Error("what is held can be changed from outside")
		}
		if _, ok := NewTable().Take(token, "GET"); ok {
			t.Error("a token of another sandbox is taken")
		}
		time.Sleep(59 * time.Second)
		if _, ok := table.Take(token, "GET"); !ok {
			t.Error("not taken after 59 s")
		}
		time.Sleep(time.Second)
		if _, ok := table.Take(token, "GET"); ok {
			t.Error("taken after 60 s")
		}
		if table.Len() != 1 {
			t.Errorf("%d held", table.Len())
		}
		time.Sleep(maxLife)
		give("")
		if table.Len() != 1 { // the one that was over made room
			t.Errorf("%d held", table.Len())
		}
	})
}

// TestTableBounds: the table never grows beyond its bounds; the oldest makes room.
func TestTableBounds(t *testing.T) {
	u, err := url.Parse("https://objects.test/")
	if err != nil {
		t.Fatal(err)
	}
	table := NewTable()
	action := func(size int) Action {
		return Action{Method: "GET", URL: u, Header: http.Header{"X": {strings.Repeat("x", size)}}, Object: Object{hello, 5}, Expires: time.Now().Add(time.Hour)}
	}
	first := table.add(action(1))
	second := table.add(action(1))
	for range maxActions - 1 {
		table.add(action(1))
	}
	if _, ok := table.Take(first, "GET"); ok || table.Len() != maxActions {
		t.Errorf("%d held, the oldest too: %v", table.Len(), ok)
	}
	if _, ok := table.Take(second, "GET"); !ok {
		t.Error("one too many was dropped")
	}
	for range 3000 {
		table.add(action(8 << 10))
		if table.size > maxHeld {
			t.Fatalf("%d bytes held", table.size)
		}
	}
	if n := table.Len(); n < 2000 || n > 2100 || n != table.old.Len() {
		t.Errorf("%d held, %d in order", n, table.old.Len())
	}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 500 {
				token := table.add(action(1))
				if _, ok := table.Take(token, "GET"); !ok {
					t.Error("not taken")
				}
			}
		})
	}
	wait.Wait()
}

// TestActionIsSilent: what is printed of an action has neither its URL nor its header.
func TestActionIsSilent(t *testing.T) {
	u, err := url.Parse("https://objects.test/canary")
	if err != nil {
		t.Fatal(err)
	}
	a := Action{Method: "GET", URL: u, Header: http.Header{"A": {"canary"}}, Object: Object{hello, 5}}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", a, &a)
		fmt.Fprintf(&out, verb+"\n", []Action{a})
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "a", a, "b", &a)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "a", a, "b", []Action{a})
	if err := json.NewEncoder(&out).Encode(map[string]any{"a": a}); err != nil {
		t.Fatal(err)
	}
	hidden := fmt.Sprintf("%x", "canary")
	if got := out.String(); strings.Contains(got, "canary") || strings.Contains(got, hidden) || strings.Contains(got, "objects.test") || !strings.Contains(got, "lfs action GET "+hello) {
		t.Error(got)
	}
}

func TestVerifyingReader(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16)
	const bigSum = "0" // made below
	for name, c := range map[string]struct {
		content string
		oid     string
		size    int64
		err     error
	}{
		"right":             {"hello", hello, 5, nil},
		"nothing":           {"", empty, 0, nil},
		"large":             {big, bigSum, int64(len(big)), nil},
		"too long":          {"hello!", hello, 5, ErrTooLong},
		"far too long":      {"hello" + big, hello, 5, ErrTooLong},
		"something":         {"x", empty, 0, ErrTooLong},
		"too short":         {"hell", hello, 5, io.ErrUnexpectedEOF},
		"nothing at all":    {"", hello, 5, io.ErrUnexpectedEOF},
		"other content":     {"jello", hello, 5, ErrContent},
		"other last byte":   {"hellO", hello, 5, ErrContent},
		"nothing, other id": {"", hello, 0, ErrContent},
		"negative size":     {"hello", hello, -1, ErrContent},
	} {
		if c.oid == bigSum {
			c.oid = sumOf(c.content)
		}
		for way, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "halves": iotest.HalfReader, "end with data": iotest.DataErrReader,
		} {
			if way == "byte by byte" && len(c.content) > 1<<10 {
				continue
			}
			got, err := io.ReadAll(NewVerifyingReader(wrap(strings.NewReader(c.content)), c.oid, c.size))
			if !errors.Is(err, c.err) || c.err == nil && string(got) != c.content {
				t.Errorf("%s, %s: got %d bytes, %v, want %v", name, way, len(got), err, c.err)
			}
			if c.err != nil && c.size > 0 && int64(len(got)) >= c.size {
				t.Errorf("%s, %s: %d of %d bytes passed, though the content is wrong", name, way, len(got), c.size)
			}
			if !strings.HasPrefix(c.content, string(got)) {
				t.Errorf("%s, %s: %q is not from the content", name, way, got)
			}
		}
	}
	v := NewVerifyingReader(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("hello"))), hello, 5)
	if _, err := io.ReadAll(v); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a broken source ends in %v", err)
	}
	if err := iotest.TestReader(NewVerifyingReader(strings.NewReader("hello"), hello, 5), []byte("hello")); err != nil {
		t.Error(err)
	}
}

func TestLocks(t *testing.T) {
	long := strings.Repeat("x", maxText+1)
	for _, c := range []struct {
		kind     Kind
		id       string
		in, want string // want "": refused
	}{
		{CreateLock, "", `{"path":"a/b.zip","ref":{"name":"refs/heads/main"},"x":1}`, `{"path":"a/b.zip","ref":{"name":"refs/heads/main"}}`},
		{CreateLock, "", `{"path":"a"}`, `{"path":"a"}`},
		{CreateLock, "", `{}`, ``},
		{CreateLock, "", `{"path":"a\u001b"}`, ``},
		{CreateLock, "", `{"path":"` + long + `"}`, ``},
		{CreateLock, "", `{"path":"a","ref":{"name":"main"}}`, ``},
		{Unlock, "17", `{"force":true}`, `{}`}, // it would take somebody else's lock away
		{Unlock, "17", `{"force":false,"ref":{}}`, `{}`},
		{Unlock, "17", `[]`, ``},
		{VerifyLocks, "", `{"cursor":"c","limit":100,"ref":{"name":"refs/heads/main"}}`, `{"cursor":"c","limit":100,"ref":{"name":"refs/heads/main"}}`},
		{VerifyLocks, "", `{"limit":-1}`, ``},
		{VerifyObject, hello, `{"oid":"` + hello + `","size":5,"x":1}`, `{"oid":"` + hello + `","size":5}`},
		{VerifyObject, hello, `{"oid":"` + empty + `","size":0}`, ``},
		{VerifyObject, hello, `{"oid":"` + hello + `","size":-5}`, ``},
		{BatchObjects, "", `{}`, ``},
		{0, "", `{}`, ``},
	} {
		got, err := Call{c.kind, c.id}.ReadRequest(strings.NewReader(c.in))
		if string(got) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%v %s: got %s, %v, want %s", c.kind, c.in, got, err, c.want)
		}
	}
	for _, c := range []struct {
		kind     Kind
		in, want string
		ok       bool
	}{
		{ListLocks, "", "", true},
		{ListLocks, "path=a%2Fb&limit=5&refspec=refs/heads/main", "limit=5&path=a%2Fb&refspec=refs%2Fheads%2Fmain", true},
		{ListLocks, "limit=x", "", false},
		{ListLocks, "path=a&path=b", "", false},
		{ListLocks, "token=x", "", false},
		{ListLocks, "path=%0a", "", false},
		{ListLocks, "path=%zz", "", false},
		{CreateLock, "path=a", "", false},
		{CreateLock, "", "", true},
		{BatchObjects, "x=1", "", false},
	} {
		got, err := Call{Kind: c.kind}.ReadQuery(c.in)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%v %q: got %q, %v", c.kind, c.in, got, err)
		}
	}
}

func TestLockAnswers(t *testing.T) {
	const one = `{"id":"7","path":"a.zip","locked_at":"2016-05-17T15:49:06+00:00","owner":{"name":"Jane Doe"}}`
	for _, c := range []struct {
		kind     Kind
		status   int
		in, want string // want "": refused
	}{
		{ListLocks, 200, `{"locks":[` + one + `],"next_cursor":"c","x":"canary"}`, `{"locks":[` + one + `],"next_cursor":"c"}`},
		{ListLocks, 200, `{}`, `{"locks":[]}`},
		{VerifyLocks, 200, `{"ours":[` + one + `]}`, `{"ours":[` + one + `],"theirs":[]}`},
		{VerifyLocks, 200, `{"theirs":[{"id":"7","path":"a\u001b[2J"}]}`, ``},
		{VerifyLocks, 404, `{"message":"canary"}`, `{"message":"` + sentence(404) + `"}`},
		{CreateLock, 201, `{"lock":` + one + `,"message":"canary"}`, `{"lock":` + one + `}`},
		{CreateLock, 409, `{"lock":` + one + `,"message":"canary"}`, `{"lock":` + one + `,"message":"the file is locked already"}`},
		{CreateLock, 201, `{}`, ``},
		{CreateLock, 403, `<html>canary`, `{"message":"` + sentence(403) + `"}`},
		{Unlock, 200, `{"lock":{"id":"7","path":"a"}}`, `{"lock":{"id":"7","path":"a"}}`},
		{Unlock, 200, `canary`, ``},
		{Unlock, 500, `canary`, `{"message":"` + sentence(500) + `"}`},
		{VerifyObject, 200, `canary`, `{}`},
		{VerifyObject, 404, `canary`, `{"message":"` + sentence(404) + `"}`},
		{BatchObjects, 200, `{}`, ``},
	} {
		got, err := Call{Kind: c.kind}.Answer(c.status, strings.NewReader(c.in))
		if string(got) != c.want || (err == nil) != (c.want != "") || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%v %d %s: got %s, %v, want %s", c.kind, c.status, c.in, got, err, c.want)
		}
	}
	seen := map[string]bool{}
	for _, status := range []int{401, 403, 404, 422, 429, 507, 500} {
		seen[string(Refused(status))] = true
	}
	if len(seen) != 7 {
		t.Errorf("%v", seen)
	}
}
