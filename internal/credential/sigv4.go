package credential

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

const (
	algorithm       = "AWS4-HMAC-SHA256"
	amzTime         = "20060102T150405Z"
	unsignedPayload = "UNSIGNED-PAYLOAD"
	// unsignedChunks is what the current SDKs upload with over TLS: chunks without signatures of their own, a checksum behind them.
	unsignedChunks = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// signer signs by AWS Signature Version 4, as the IAM User Guide specifies it under "Create a signed AWS API request".
type signer struct {
	accessKeyID, region, service string
	secret, session              secret.Bytes
}

// SigV4AccessKey returns the access key id in an Authorization header of Signature Version 4: where a placeholder stands in a request that a program signed.
func SigV4AccessKey(authorization string) (id string, ok bool) {
	c, ok := parseSigned(authorization)
	return c.id, ok
}

// signed is what an Authorization header of the algorithm says about itself.
type signed struct{ id, region, service string }

func parseSigned(authorization string) (signed, bool) {
	rest, ok := strings.CutPrefix(authorization, algorithm+" ")
	if !ok {
		return signed{}, false
	}
	for part := range strings.SplitSeq(rest, ",") {
		scope, ok := strings.CutPrefix(strings.TrimSpace(part), "Credential=")
		if !ok {
			continue
		}
		f := strings.Split(scope, "/")
		if len(f) != 5 || f[4] != "aws4_request" {
			return signed{}, false
		}
		for _, s := range f[2:4] {
			if s == "" || len(s) > 60 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
				return signed{}, false
			}
		}
		return signed{f[0], f[2], f[3]}, true
	}
	return signed{}, false
}

// sign replaces the request's signature. It also writes host and query in the spelling that is signed.
func (s signer) sign(r *http.Request, payloadHash string, now time.Time) error {
	if old, ok := parseSigned(r.Header.Get("Authorization")); ok {
		if s.region == "" {
			s.region = old.region
		}
		if s.service == "" {
			s.service = old.service
		}
	}
	if s.region == "" || s.service == "" {
		return fault.New(fault.Invalid, "region and service are known neither from the credential nor from the request's signature").
			WithHint("let the program sign with its placeholders, or add the credential with --region and --service")
	}
	query, err := canonicalQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	payload, err := s.payload(r, payloadHash)
	if err != nil {
		return err
	}
	for _, name := range []string{"Authorization", "X-Amz-Security-Token", "X-Amz-Date"} {
		r.Header.Del(name)
	}
	r.URL.RawQuery = query
	if r.Host == "" {
		r.Host = r.URL.Host
	}
	r.Host = strings.ToLower(strings.TrimSuffix(r.Host, ":443")) // servers sign the name without the port that goes without saying
	stamp := now.UTC().Format(amzTime)
	r.Header.Set("X-Amz-Date", stamp)
	if !s.session.Empty() {
		r.Header.Set("X-Amz-Security-Token", string(s.session.Reveal()))
	}
	names, lines := s.headers(r)
	canonical := strings.Join([]string{r.Method, s.path(r.URL), query, lines, names, payload}, "\n")
	scope := strings.Join([]string{stamp[:8], s.region, s.service, "aws4_request"}, "/")
	sum := sha256.Sum256([]byte(canonical))
	text := strings.Join([]string{algorithm, stamp, scope, hex.EncodeToString(sum[:])}, "\n")
	r.Header.Set("Authorization", algorithm+" Credential="+s.accessKeyID+"/"+scope+", SignedHeaders="+names+", Signature="+hex.EncodeToString(mac(s.key(stamp[:8]), text)))
	return nil
}

// key derives the key of one day, region and service.
func (s signer) key(day string) []byte {
	k := append([]byte("AWS4"), s.secret.Reveal()...)
	defer clear(k)
	return mac(mac(mac(mac(k, day), s.region), s.service), "aws4_request")
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// isS3 reports whether the service signs paths and payloads in S3's own way.
func (s signer) isS3() bool { return s.service == "s3" || strings.HasPrefix(s.service, "s3-") }

// payload returns what is signed in place of the body, and sets the header that says so where there must be one.
func (s signer) payload(r *http.Request, hash string) (string, error) {
	own := r.Header.Get("X-Amz-Content-Sha256")
	if hash == "" {
		hash = own
	}
	plain := len(hash) == 64 && strings.Trim(hash, "0123456789abcdef") == ""
	switch {
	case hash == "":
		return "", fault.New(fault.Invalid, "the hash of the request's body is not known")
	case !plain && !(s.isS3() && (hash == unsignedPayload || hash == unsignedChunks)):
		// Chunks signed with the placeholder's key would have to be signed again one by one.
		return "", fault.New(fault.Unsupported, "a body that is signed as %.60q cannot be signed again", hash).
			WithHint("let the program sign the body as a whole, or not at all over TLS")
	}
	if own != "" || s.isS3() {
		r.Header.Set("X-Amz-Content-Sha256", hash)
	}
	return hash, nil
}

// headers returns the names of the signed headers and their canonical lines. Signed are the host, what the service acts on, and nothing that transport may change.
func (s signer) headers(r *http.Request) (names, lines string) {
	values := map[string]string{"host": r.Host}
	for name, list := range r.Header {
		lower := strings.ToLower(name)
		if slices.Contains([]string{"content-type", "content-md5", "date", "range"}, lower) || strings.HasPrefix(lower, "x-amz-") {
			cleaned := make([]string, len(list))
			for i, v := range list {
				cleaned[i] = strings.Join(strings.FieldsFunc(v, func(c rune) bool { return c == ' ' || c == '\t' }), " ")
			}
			values[lower] = strings.Join(cleaned, ",")
		}
	}
	order := make([]string, 0, len(values))
	for name := range values {
		order = append(order, name)
	}
	slices.Sort(order)
	var b strings.Builder
	for _, name := range order {
		b.WriteString(name + ":" + values[name] + "\n")
	}
	return strings.Join(order, ";"), b.String()
}

// path returns the canonical path. S3 signs the key's bytes, encoded once; all others sign the path as it is sent, without dots and double slashes, encoded again.
func (s signer) path(u *url.URL) string {
	if s.isS3() {
		if u.Path == "" {
			return "/"
		}
		return escape(u.Path, true)
	}
	sent := u.EscapedPath()
	if sent == "" {
		return "/"
	}
	clean := path.Clean("/" + sent)
	if strings.HasSuffix(sent, "/") && clean != "/" {
		clean += "/"
	}
	return escape(clean, true)
}

// canonicalQuery sorts and re-encodes the query, and refuses one that is signed itself: the placeholder's signature would go out with it.
func canonicalQuery(raw string) (string, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return "", fault.New(fault.Invalid, "the query cannot be read in one way only")
	}
	var pairs [][2]string
	for name, list := range values {
		if strings.EqualFold(name, "X-Amz-Signature") || strings.EqualFold(name, "X-Amz-Credential") || strings.EqualFold(name, "X-Amz-Security-Token") {
			return "", fault.New(fault.Unsupported, "a signature in the query cannot be replaced").WithHint("let the program sign by headers; presigned addresses are for those who have the key")
		}
		for _, v := range list {
			pairs = append(pairs, [2]string{escape(name, false), escape(v, false)})
		}
	}
	slices.SortFunc(pairs, func(a, b [2]string) int {
		if c := strings.Compare(a[0], b[0]); c != 0 {
			return c
		}
		return strings.Compare(a[1], b[1])
	})
	parts := make([]string, len(pairs))
	for i, p := range pairs {
		parts[i] = p[0] + "=" + p[1]
	}
	return strings.Join(parts, "&"), nil
}

// escape percent-encodes all but the unreserved characters of RFC 3986.
func escape(s string, keepSlash bool) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.~", c) >= 0 || c == '/' && keepSlash {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&15])
	}
	return b.String()
}
