package credential

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"strings"
	"sync"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// Shape is what a placeholder looks like: programs check the form of a token before they send it. The zero value is Generic.
type Shape string

// The shapes.
const (
	Generic     Shape = "generic"
	GitHub      Shape = "github"       // ghp_, 36 letters and digits
	GitHubFine  Shape = "github-fine"  // github_pat_, 22, underscore, 59
	GitHubToken Shape = "github-token" // ghs_, 36: what an app's installation has
	GitLab      Shape = "gitlab"       // glpat-, 27, .01., 9
	NPM         Shape = "npm"          // npm_, 36
	PyPI        Shape = "pypi"         // pypi-, long
	Anthropic   Shape = "anthropic"    // sk-ant-api03-, 93 and AA
	OpenAI      Shape = "openai"       // sk-proj-, 74
	Slack       Shape = "slack"        // xoxb- and numbers
	AWSKey      Shape = "aws"          // AKIA, 16 capitals and digits; and a secret access key of 40
)

const (
	alphanumeric = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	capitals     = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	digits       = "0123456789"
)

// form is how a shape is made: pieces of text, and runs of random symbols of an alphabet.
type form struct {
	shape  Shape
	prefix []string // by which real values are recognised
	pieces []piece
}

type piece struct {
	text     string
	alphabet string
	n        int
}

// forms lists the shapes. Each carries 128 random bits or more. The one exception is the id of an AWS key, whose form has room for 80: it stands beside a secret of 238.
func forms() []form {
	run := func(n int) piece { return piece{alphabet: alphanumeric, n: n} }
	text := func(s string) piece { return piece{text: s} }
	return []form{
		{GitHubFine, []string{"github_pat_"}, []piece{text("github_pat_"), run(22), text("_"), run(59)}},
		{GitHubToken, []string{"ghs_", "ghu_", "gho_"}, []piece{text("ghs_"), run(36)}},
		{GitHub, []string{"ghp_"}, []piece{text("ghp_"), run(36)}},
		{GitLab, []string{"glpat-"}, []piece{text("glpat-"), run(27), text(".01."), run(9)}},
		{NPM, []string{"npm_"}, []piece{text("npm_"), run(36)}},
		{PyPI, []string{"pypi-"}, []piece{text("pypi-AgEIcHlwaS5vcmc"), run(150)}},
		{Anthropic, []string{"sk-ant-"}, []piece{text("sk-ant-api03-"), run(93), text("AA")}},
		{OpenAI, []string{"sk-"}, []piece{text("sk-proj-"), run(74)}},
		{Slack, []string{"xoxb-", "xoxp-"}, []piece{text("xoxb-"), {alphabet: digits, n: 12}, text("-"), {alphabet: digits, n: 13}, text("-"), run(24)}},
		{AWSKey, nil, []piece{text("AKIA"), {alphabet: capitals, n: 16}}},
		{Generic, nil, []piece{text("cfd_"), run(40)}},
	}
}

// Shapes lists all shapes.
func Shapes() []Shape {
	var list []Shape
	for _, f := range forms() {
		list = append(list, f.shape)
	}
	slices.Sort(list)
	return list
}

func shapeNames() string {
	var names []string
	for _, s := range Shapes() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// shapeOf finds the shape for a new credential by how its real value begins.
func shapeOf(m Meta, secrets Material) Shape {
	switch m.Kind {
	case AWS:
		return AWSKey
	case GitHubApp:
		return GitHubToken
	case Static:
		for _, f := range forms() {
			if slices.ContainsFunc(f.prefix, func(p string) bool { return bytes.HasPrefix(secrets[Value].Reveal(), []byte(p)) }) {
				return f.shape
			}
		}
	}
	return Generic
}

// Placeholder stands in a sandbox where a program expects a credential. It is worth nothing anywhere else: no server knows it, and the gateway of another run
// does not either. It is no secret from the sandbox that has it.
type Placeholder struct {
	Credential Name
	Value      string // the token; for AWS the access key id
	Secret     string // for AWS the secret access key that goes with it, else empty
}

// Placeholders makes and recognises the placeholders of one run. It is safe for concurrent use.
type Placeholders struct {
	run ident.Run
	key secret.Bytes // of this run

	mu     sync.RWMutex
	byHash map[[sha256.Size]byte]Placeholder
}

// maxPlaceholders bounds what every request is searched for.
const maxPlaceholders = 1000

// NewPlaceholders returns an empty table for a run.
func NewPlaceholders(run ident.Run) *Placeholders {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails since Go 1.24
	return &Placeholders{run: run, key: secret.Take(key), byHash: map[[sha256.Size]byte]Placeholder{}}
}

// Issue makes a placeholder for a credential, in its shape.
func (p *Placeholders) Issue(m Meta) (Placeholder, error) {
	shape := m.Shape
	if shape == "" {
		shape = Generic
	}
	i := slices.IndexFunc(forms(), func(f form) bool { return f.shape == shape })
	if i < 0 {
		return Placeholder{}, fault.New(fault.Invalid, "%.40q is no shape of a placeholder", shape)
	}
	made := Placeholder{Credential: m.Name, Value: forms()[i].make()}
	if shape == AWSKey {
		made.Secret = piece{alphabet: alphanumeric, n: 40}.make()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.byHash) >= maxPlaceholders {
		return Placeholder{}, fault.New(fault.TooMany, "the run %s has %d placeholders", p.run, len(p.byHash))
	}
	for _, text := range []string{made.Value, made.Secret} {
		if text != "" {
			p.byHash[p.hash(text)] = made
		}
	}
	return made, nil
}

// Find returns the placeholder that a token is. The look-up is by a hash under this run's key, so its time tells nothing about how near a guess was.
func (p *Placeholders) Find(token string) (Placeholder, bool) {
	if len(token) > 512 {
		return Placeholder{}, false
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	found, ok := p.byHash[p.hash(token)]
	return found, ok
}

// In returns a placeholder that a text contains somewhere, as it is. Encoded forms are the caller's to search: All says what for.
func (p *Placeholders) In(text []byte) (Placeholder, bool) {
	for _, one := range p.All() {
		if bytes.Contains(text, []byte(one.Value)) || one.Secret != "" && bytes.Contains(text, []byte(one.Secret)) {
			return one, true
		}
	}
	return Placeholder{}, false
}

// All returns all placeholders of the run, by credential.
func (p *Placeholders) All() []Placeholder {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var list []Placeholder
	for _, one := range p.byHash {
		if !slices.Contains(list, one) {
			list = append(list, one)
		}
	}
	slices.SortFunc(list, func(a, b Placeholder) int {
		return strings.Compare(string(a.Credential)+a.Value, string(b.Credential)+b.Value)
	})
	return list
}

func (p *Placeholders) hash(token string) [sha256.Size]byte {
	mac := hmac.New(sha256.New, p.key.Reveal())
	mac.Write([]byte(p.run))
	mac.Write([]byte{0})
	mac.Write([]byte(token))
	return [sha256.Size]byte(mac.Sum(nil))
}

func (f form) make() string {
	var b strings.Builder
	for _, p := range f.pieces {
		b.WriteString(p.make())
	}
	return b.String()
}

func (p piece) make() string {
	if p.alphabet == "" {
		return p.text
	}
	out := make([]byte, 0, p.n)
	for len(out) < p.n {
		var b [64]byte
		_, _ = rand.Read(b[:]) // never fails since Go 1.24
		for _, c := range b {
			if limit := 256 / len(p.alphabet) * len(p.alphabet); int(c) < limit && len(out) < p.n { // no symbol more often than others
				out = append(out, p.alphabet[int(c)%len(p.alphabet)])
			}
		}
	}
	return string(out)
}
