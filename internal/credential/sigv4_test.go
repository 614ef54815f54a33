package credential

import (
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// TestSigV4Vectors are the published examples: of the signature test suite, of the IAM User Guide, and of the S3 API Reference ("Signature Calculations ... Using GET and PUT").
func TestSigV4Vectors(t *testing.T) {
	suite := signer{accessKeyID: "AKIDEXAMPLE", region: "us-east-1", service: "service", secret: text("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")}
	iam := suite
	iam.service = "iam"
	s3 := signer{accessKeyID: "AKIAIOSFODNN7EXAMPLE", region: "us-east-1", service: "s3", secret: text("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")}
	at, day := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC), time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	const bucket = "https://examplebucket.s3.amazonaws.com"
	for _, test := range []struct {
		name, method, url string
		s                 signer
		now               time.Time
		header            http.Header
		hash              string
		signed, signature string
	}{
		{"get-vanilla", "GET", "https://example.amazonaws.com/", suite, at, nil, emptyHash, "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{"get-vanilla-query-order-key-case", "GET", "https://example.amazonaws.com/?Param2=value2&Param1=value1", suite, at, nil, emptyHash, "host;x-amz-date",
			"b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
		{"ListUsers", "GET", "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08", iam, at, http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"}}, emptyHash,
			"content-type;host;x-amz-date", "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"},
		{"S3 GET object", "GET", bucket + "/test.txt", s3, day, http.Header{"Range": {"bytes=0-9"}}, emptyHash, "host;range;x-amz-content-sha256;x-amz-date",
			"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{"S3 PUT object", "PUT", bucket + "/test%24file.text", s3, day, http.Header{"Date": {"Fri, 24 May 2013 00:00:00 GMT"}, "X-Amz-Storage-Class": {"REDUCED_REDUNDANCY"}},
			"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072", "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
			"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
		{"S3 GET lifecycle", "GET", bucket + "/?lifecycle", s3, day, nil, emptyHash, "host;x-amz-content-sha256;x-amz-date", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"S3 list objects", "GET", bucket + "/?max-keys=2&prefix=J", s3, day, nil, emptyHash, "host;x-amz-content-sha256;x-amz-date",
			"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), test.method, test.url, nil)
		must(t, err)
		maps.Copy(r.Header, test.header)
		// What a program in the sandbox signed with its placeholder goes, and nothing of it stays.
		r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAPLACEHOLDER/20200101/eu-west-1/other/aws4_request, SignedHeaders=host, Signature=00")
		r.Header.Set("X-Amz-Date", "20200101T000000Z")
		r.Header.Set("X-Amz-Security-Token", "placeholder")
		must(t, test.s.sign(r, test.hash, test.now))
		want := "AWS4-HMAC-SHA256 Credential=" + test.s.accessKeyID + "/" + test.now.Format("20060102") + "/us-east-1/" + test.s.service + "/aws4_request, SignedHeaders=" + test.signed + ", Signature=" + test.signature
		if got := r.Header.Get("Authorization"); got != want {
			t.Errorf("%s:\n%s\n%s", test.name, got, want)
		}
		if r.Header.Get("X-Amz-Security-Token") != "" {
			t.Errorf("%s: the placeholder's token is still there", test.name)
		}
	}
}

func TestSigV4Refuses(t *testing.T) {
	const signed = "AWS4-HMAC-SHA256 Credential=AKIAPLACEHOLDER/20200101/eu-west-1/dynamodb/aws4_request, SignedHeaders=host, Signature=00"
	for name, test := range map[string]struct {
		service, url, authorization, own, hash string
		ok                                     bool
	}{
		"known from the request":    {"", "https://a.example.com/", signed, "", emptyHash, true},
		"region not known":          {"", "https://a.example.com/", "", "", emptyHash, false},
		"asymmetric":                {"", "https://a.example.com/", "AWS4-ECDSA-P256-SHA256 Credential=A/20200101/dynamodb/aws4_request", "", emptyHash, false},
		"the request's own hash":    {"s3", "https://a.example.com/", signed, emptyHash, "", true},
		"no hash":                   {"s3", "https://a.example.com/", signed, "", "", false},
		"unsigned, S3":              {"s3", "https://a.example.com/", signed, unsignedPayload, "", true},
		"unsigned chunks, S3":       {"s3", "https://a.example.com/", signed, unsignedChunks, "", true},
		"signed chunks":             {"s3", "https://a.example.com/", signed, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "", false},
		"unsigned, elsewhere":       {"sqs", "https://a.example.com/", signed, unsignedPayload, "", false},
		"a hash that is none":       {"s3", "https://a.example.com/", signed, strings.Repeat("g", 64), "", false},
		"presigned":                 {"s3", "https://a.example.com/?X-Amz-Signature=00", signed, emptyHash, "", false},
		"presigned, spelled":        {"s3", "https://a.example.com/?x-amz-%63redential=AKIA", signed, emptyHash, "", false},
		"a query of two meanings":   {"s3", "https://a.example.com/?a=b;c=d", signed, emptyHash, "", false},
		"a scope with line breaks":  {"", "https://a.example.com/", "AWS4-HMAC-SHA256 Credential=A/20200101/eu\n/x/aws4_request", "", emptyHash, false},
		"too many parts in a scope": {"", "https://a.example.com/", "AWS4-HMAC-SHA256 Credential=A/B/20200101/eu/x/aws4_request", "", emptyHash, false},
	} {
		s := signer{accessKeyID: "AKIAREAL", service: test.service, secret: text("secret")}
		r, err := http.NewRequestWithContext(t.Context(), "GET", test.url, nil)
		must(t, err)
		if test.authorization != "" {
			r.Header.Set("Authorization", test.authorization)
		}
		if test.own != "" {
			r.Header.Set("X-Amz-Content-Sha256", test.own)
		}
		before := r.Header.Get("Authorization")
		err = s.sign(r, test.hash, time.Now())
		if (err == nil) != test.ok || err != nil && fault.HintOf(err) == "" && fault.KindOf(err) == fault.Unsupported {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && r.Header.Get("Authorization") != before || err == nil && strings.Contains(r.Header.Get("Authorization"), "PLACEHOLDER") {
			t.Errorf("%s: %s", name, r.Header.Get("Authorization"))
		}
	}
	if id, ok := SigV4AccessKey(signed); !ok || id != "AKIAPLACEHOLDER" {
		t.Error(id)
	}
	for _, text := range []string{"", "Bearer x", "AWS4-HMAC-SHA256 Credential=x", "AWS4-HMAC-SHA256 SignedHeaders=host"} {
		if id, ok := SigV4AccessKey(text); ok {
			t.Errorf("%q: %s", text, id)
		}
	}
}

func TestSigV4Path(t *testing.T) {
	for _, test := range []struct{ service, path, want string }{
		{"s3", "", "/"}, {"s3", "/a%20b/c%2Fd", "/a%20b/c/d"}, {"s3", "/a//b/../c", "/a//b/../c"}, {"s3", "/~a+b", "/~a%2Bb"},
		{"iam", "", "/"}, {"iam", "/a%20b", "/a%2520b"}, {"iam", "/a//b/../c/", "/a/c/"}, {"iam", "/-_.~", "/-_.~"},
	} {
		u, err := url.Parse("https://example.com" + test.path)
		must(t, err)
		if got := (signer{service: test.service}).path(u); got != test.want {
			t.Errorf("%s %s: %s, want %s", test.service, test.path, got, test.want)
		}
	}
}

// FuzzCanonicalQuery: canonical is a fixed point, and says what the query said.
func FuzzCanonicalQuery(f *testing.F) {
	f.Add("b=2&a=1&a=0&c")
	f.Add("a=%20+%2B&%61=x&=y")
	f.Fuzz(func(t *testing.T, raw string) {
		canonical, err := canonicalQuery(raw)
		if err != nil {
			return
		}
		again, err := canonicalQuery(canonical)
		if err != nil || again != canonical {
			t.Fatalf("%q: %q, then %q, %v", raw, canonical, again, err)
		}
		a, _ := url.ParseQuery(raw)
		b, err := url.ParseQuery(canonical)
		if err != nil || len(a) != len(b) {
			t.Fatalf("%q: %q, %v", raw, canonical, err)
		}
		for name, list := range a {
			if len(b[name]) != len(list) {
				t.Fatalf("%q: %q", raw, canonical)
			}
		}
	})
}

func TestAWSGrant(t *testing.T) {
	s, ring := testStore(t)
	m := staticMeta("bucket")
	m.Kind, m.AWS = AWS, &AWSSettings{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", Region: "eu-central-1", Service: "s3"}
	must(t, s.Add(ring, m, Material{SecretAccessKey: text("secret/key"), SessionToken: text("session")}))
	g, err := open(t, s, ring, Options{}, "bucket").Lend(t.Context(), "bucket", request())
	must(t, err)
	if err := g.Inject(http.Header{}); err == nil || !g.Signs() {
		t.Error("injected")
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", "https://Example.com:443/a?b", nil)
	must(t, err)
	must(t, g.SignRequest(r, emptyHash))
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/") || r.Header.Get("X-Amz-Security-Token") != "session" || r.Host != "example.com" ||
		!strings.Contains(r.Header.Get("Authorization"), "x-amz-security-token") || r.URL.RawQuery != "b=" {
		t.Errorf("%v %s %s", r.Header, r.Host, r.URL)
	}
	if len(g.Secrets()) != 2 {
		t.Error(len(g.Secrets()))
	}
}
