package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway/plainhttp"
	"github.com/cofferdam/cofferdam/internal/gateway/redact"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// Grant is the use of one credential for one request. It must be safe for concurrent use.
type Grant interface {
	// Inject sets the credential's header.
	Inject(h http.Header) error
	// Signs reports whether SignRequest takes the place of Inject.
	Signs() bool
	// SignRequest signs the request as it will be sent. payloadHash is the hexadecimal SHA-256 of the body, or "" where it is not known.
	SignRequest(r *http.Request, payloadHash string) error
	// Secrets are what must not come back.
	Secrets() []secret.Bytes
	// Revoked returns an error once the credential must not be used any more.
	Revoked() error
	// Rejected tells that the server refused the credential.
	Rejected()
}

// Placeholder stands inside in the place of a credential. It is worth nothing anywhere else.
type Placeholder struct {
	Credential string
	Value      string
}

// borrowed is a credential that a request has.
type borrowed struct {
	name  string
	grant Grant
}

// misuse is a refusal that is about a credential.
type misuse struct {
	policy.Decision
	credential string
	where      string // in the request, for the record
}

// present finds out which credentials a request is to get: those that policy lends it and whose placeholder stands in their header, or that
// have none. A placeholder anywhere else, and a credential of the program's own, refuse the request: nothing of it is sent.
func (d *httpDoor) present(law *policy.Policy, c policy.Crossing, r *plainhttp.Request) ([]policy.Credential, misuse) {
	var lends []policy.Credential
	d.bound = false
	if d.secure {
		lends = law.Lends(c)
		d.bound = len(law.Bound(c.Host, c.Port)) > 0
	}
	presented, wrong := d.placeholders(lends, r)
	if wrong.Rule != "" || !d.bound {
		return nil, wrong
	}
	if wrong := foreign(law.Bound(c.Host, c.Port), presented, r); wrong.Rule != "" {
		return nil, wrong
	}
	return slices.DeleteFunc(lends, func(l policy.Credential) bool { return l.Env != "" && !presented[l.Header] }), misuse{}
}

// placeholders looks for placeholders in the whole head, and returns the headers in which one stands where it belongs.
func (d *httpDoor) placeholders(lends []policy.Credential, r *plainhttp.Request) (presented map[string]bool, wrong misuse) {
	presented = map[string]bool{}
	set := d.p.g.placeholders
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		if credential := d.p.g.namedLike(name); credential != "" {
			return nil, misplaced(credential, "name of a header")
		}
		for _, value := range r.Header[name] {
			i, found := set.Find([]byte(value))
			if !found {
				continue
			}
			credential := d.p.g.config.Placeholders[i].Credential
			if !slices.ContainsFunc(lends, func(l policy.Credential) bool { return l.Use == credential && l.Header == name }) {
				return nil, misplaced(credential, "header "+name)
			}
			presented[name] = true
		}
	}
	for _, target := range []string{r.Target, unescaped(r.Target)} {
		if i, found := set.Find([]byte(target)); found {
			return nil, misplaced(d.p.g.config.Placeholders[i].Credential, "path or query")
		}
	}
	return presented, misuse{}
}

// namedLike returns the credential whose placeholder stands in the name of a header, where case does not count.
func (g *Gateway) namedLike(name string) string {
	lower := strings.ToLower(name)
	for _, one := range g.config.Placeholders {
		if len(one.Value) > 0 && len(lower) >= len(one.Value) && strings.Contains(lower, strings.ToLower(one.Value)) {
			return one.Credential
		}
	}
	return ""
}

// unescaped undoes percent-encoding as far as it is any.
func unescaped(target string) string {
	if text, err := url.PathUnescape(target); err == nil {
		return text
	}
	return target
}

func misplaced(credential, where string) misuse {
	return misuse{credential: credential, where: where, Decision: policy.Decision{
		Rule:   RulePlaceholderMisused,
		Reason: "the placeholder of credential " + credential + " stands in the " + where + " of a request to which policy does not lend it there",
	}}
}

// ownCredentials are headers in which programs send credentials.
func ownCredentials() []string {
	return []string{
		"Authorization", "Proxy-Authorization", "Cookie", "Api-Key", "X-Api-Key", "Apikey", "X-Apikey", "Private-Token", "Job-Token", "Deploy-Token", "X-Auth-Token",
		"X-Access-Token", "X-Auth-Key", "X-Token", "X-Github-Token", "X-Gitlab-Token", "X-Goog-Api-Key", "X-Amz-Security-Token", "X-Vault-Token", "X-Csrf-Token-Auth",
	}
}

// foreign refuses credentials of the program's own for a host to which policy lends one: with them it would act there as somebody else.
func foreign(bound []policy.Credential, presented map[string]bool, r *plainhttp.Request) misuse {
	refused := func(where string) misuse {
		return misuse{credential: bound[0].Use, where: where, Decision: policy.Decision{
			Rule:   RuleForeignCredential,
			Reason: "the request has a credential of its own in the " + where + ", and to this host policy lends one: send its placeholder, or nothing",
		}}
	}
	own := ownCredentials()
	for _, b := range bound {
		own = append(own, b.Header)
	}
	for _, name := range own {
		if len(r.Header[name]) > 1 || len(r.Header[name]) == 1 && !presented[name] {
			return refused("header " + name)
		}
	}
	for name := range r.Header { // what follows CGI (RFC 3875 §4.1.18) takes the two for the same
		folded := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
		if folded != name && !presented[name] && slices.Contains(own, folded) {
			return refused("header " + folded)
		}
	}
	_, query, _ := strings.Cut(r.Target, "?")
	for part := range strings.FieldsFuncSeq(query, func(c rune) bool { return c == '&' || c == ';' }) {
		name, _, _ := strings.Cut(part, "=")
		switch strings.ToLower(unescaped(name)) {
		case "access_token", "private_token", "job_token", "oauth_token", "api_key", "apikey", "api-key", "auth_token", "x-amz-credential", "x-amz-signature", "x-goog-signature":
			return refused("query")
		}
	}
	return misuse{}
}

func names(use []policy.Credential) string {
	var all []string
	for _, l := range use {
		all = append(all, l.Use)
	}
	return strings.Join(all, ",")
}

// lines says where policy lends them.
func lines(law *policy.Policy, use []policy.Credential) string {
	var all []string
	for _, l := range use {
		if l.Line > 0 {
			all = append(all, law.File()+":"+strconv.Itoa(l.Line))
		}
	}
	return strings.Join(all, ",")
}

// borrow gets the grants for an admitted request and puts them into its header. It comes after the record, and only for verified TLS.
func (d *httpDoor) borrow(ctx context.Context, law *policy.Policy, c policy.Crossing, r *plainhttp.Request, use []policy.Credential) *plainhttp.Refusal {
	if d.bound {
		restrain(r.Header)
	}
	if len(use) > 0 && d.p.g.policy.Load() != law { // policy has changed while the record was written: what it lends now counts
		now := d.p.g.policy.Load().Lends(c)
		if slices.ContainsFunc(use, func(l policy.Credential) bool {
			return !slices.ContainsFunc(now, func(n policy.Credential) bool { return n.Use == l.Use && n.Header == l.Header })
		}) {
			return d.unavailable(ctx, c, names(use), "policy has changed and does not lend it any more")
		}
	}
	for _, l := range use {
		if why := d.borrowOne(ctx, l, c, r); why != "" {
			d.release()
			return d.unavailable(ctx, c, l.Use, why)
		}
	}
	r.Route = names(use)
	return nil
}

// unavailable refuses a request whose credential cannot be had. It fails closed: without its credential a request is not the one that was meant.
func (d *httpDoor) unavailable(ctx context.Context, c policy.Crossing, credential, why string) *plainhttp.Refusal {
	refused := policy.Decision{Rule: RuleCredentialUnavailable, Reason: "the credential " + credential + " cannot be lent: " + why}
	d.p.g.denyUse(ctx, c, refused, d.p.query("tcp"), "", credential)
	return &plainhttp.Refusal{Status: http.StatusBadGateway, Rule: refused.Rule, Reason: refused.Reason}
}

// borrowOne returns why a credential cannot be lent, or "".
func (d *httpDoor) borrowOne(ctx context.Context, l policy.Credential, c policy.Crossing, r *plainhttp.Request) string {
	if d.p.g.config.Lend == nil {
		return "this gateway has no store of credentials"
	}
	grant, err := d.p.g.config.Lend(ctx, l.Use, c)
	if err != nil {
		d.p.g.log.ErrorContext(ctx, "credential cannot be lent", "credential", l.Use, "error", d.Clean(err.Error()))
		return fault.Public(err)
	}
	secrets := grant.Secrets()
	if len(secrets) == 0 || slices.ContainsFunc(secrets, func(s secret.Bytes) bool { return s.Len() < redact.MinLength }) {
		return "it is too short to be recognised in an answer"
	}
	// First what must not come back is known, then it goes out.
	d.p.g.vault.add(secrets, d.p.g.standIn(l.Use))
	hash, err := d.bodyHash(grant, r)
	if err == nil {
		err = inject(grant, l.Header, c, r, hash)
	}
	if err != nil {
		d.p.g.log.ErrorContext(ctx, "credential cannot be put into the request", "credential", l.Use, "error", d.Clean(err.Error()))
		return fault.Public(err)
	}
	d.p.lent(grant)
	d.borrowed = append(d.borrowed, borrowed{l.Use, grant})
	return ""
}

const (
	// maxSigned is how long a body may be that is held to be signed, allSigned all that are held at once for one sandbox. The longest requests to services that want
	// their bodies signed without a hash in the head are calls of functions and models, of up to 6 MiB and more.
	maxSigned = 8 << 20
	allSigned = 4 * maxSigned
)

// bodyHash is the hash of a body that is to be signed, where the program has not put it into the head. It holds the body until the request is over.
func (d *httpDoor) bodyHash(grant Grant, r *plainhttp.Request) (string, error) {
	if !grant.Signs() || r.Header.Get("X-Amz-Content-Sha256") != "" {
		return "", nil
	}
	long := fault.New(fault.Invalid, "the body has to be signed, and is longer than %d bytes or of unknown length: the program would have to send X-Amz-Content-Sha256", maxSigned)
	if r.Length < 0 || r.Length > maxSigned {
		return "", long
	}
	if d.p.g.signing.Add(r.Length) > allSigned {
		d.p.g.signing.Add(-r.Length)
		return "", fault.New(fault.TooMany, "too many bodies are held to be signed")
	}
	d.held += r.Length
	body, err := r.Whole(maxSigned)
	if errors.Is(err, plainhttp.ErrNotWhole) {
		return "", long
	}
	if err != nil {
		return "", fault.New(fault.Invalid, "the body did not arrive").Because(err)
	}
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:]), nil
}

// release gives back what is held.
func (d *httpDoor) release() {
	d.p.g.signing.Add(-d.held)
	d.held = 0
}

// standIn is the placeholder of a credential, or nothing.
func (g *Gateway) standIn(credential string) []byte {
	for _, one := range g.config.Placeholders {
		if one.Credential == credential {
			return []byte(one.Value)
		}
	}
	return nil
}

// inject sets the one header, in place of all that stood there. What a grant does to any other header is not taken over, except the
// headers that belong to a signature. hash is the body's, if it is to be signed.
func inject(grant Grant, header string, c policy.Crossing, r *plainhttp.Request, hash string) error {
	h := r.Header.Clone()
	if grant.Signs() { // the signature that is replaced says for which region and service it is
		u, err := url.ParseRequestURI(r.Target)
		if err != nil {
			return fault.New(fault.Invalid, "the request's target cannot be signed")
		}
		u.Scheme, u.Host = "https", string(c.Host)
		if c.Port != 443 {
			u.Host += ":" + portText(c.Port)
		}
		signed := &http.Request{Method: r.Method, URL: u, Host: u.Host, Header: h, ContentLength: r.Length}
		if err := grant.SignRequest(signed, hash); err != nil {
			return err
		}
		if slices.Equal(h[header], r.Header[header]) {
			return fault.New(fault.Internal, "the program's own signature was not replaced")
		}
	} else {
		h.Del(header)
		if err := grant.Inject(h); err != nil {
			return err
		}
	}
	if len(h[header]) != 1 || !sendable(h[header][0]) {
		return fault.New(fault.Invalid, "it does not go into the header %s that policy names", header)
	}
	r.Header.Del(header)
	r.Header[header] = h[header]
	for name, values := range h {
		if grant.Signs() && strings.HasPrefix(name, "X-Amz-") && !slices.ContainsFunc(values, func(v string) bool { return !sendable(v) }) {
			r.Header[name] = values
		}
	}
	return nil
}

// sendable refuses values that would be more than one line of a header.
func sendable(value string) bool {
	return value != "" && !strings.ContainsFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f })
}

// restrain leaves out of a request what would make its answer unreadable here: encodings that are not undone, and ranges, by which an
// echoed secret could be fetched in two halves.
func restrain(h http.Header) {
	encoding := "identity"
	if slices.ContainsFunc(h["Accept-Encoding"], func(v string) bool { return strings.Contains(strings.ToLower(v), "gzip") }) {
		encoding = "gzip"
	}
	h["Accept-Encoding"] = []string{encoding}
	for _, name := range []string{"Range", "If-Range", "Sec-Websocket-Extensions", "A-Im"} {
		h.Del(name)
	}
	if _, stated := h["Grpc-Accept-Encoding"]; stated {
		h["Grpc-Accept-Encoding"] = []string{"identity"}
	}
}

// watchUpload has the body searched for placeholders while it is sent. They are worth nothing to the server, but tell that the program tries.
func (d *httpDoor) watchUpload(ctx context.Context, c policy.Crossing, r *plainhttp.Request) {
	if d.p.g.placeholders == nil {
		return
	}
	w := d.p.g.placeholders.Stream()
	r.Upload = func(piece []byte) *plainhttp.Refusal {
		w.Next(piece)
		i, found := w.Found()
		if !found {
			return nil
		}
		wrong := misplaced(d.p.g.config.Placeholders[i].Credential, "body")
		return d.p.refusal(c, d.p.g.denyUse(ctx, c, wrong.Decision, d.p.query("tcp"), wrong.where, wrong.credential))
	}
}
