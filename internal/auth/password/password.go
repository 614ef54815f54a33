// Package password (CONTROL) hashes passwords with Argon2id, never more at once than the machine can bear, and refuses those that everybody tries first.
package password

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/text/unicode/norm"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// Parameters say what one hash costs.
type Parameters struct {
	Memory  uint32 // KiB
	Time    uint32
	Threads uint8
}

// Recommended is what new hashes are made with: 19 MiB, two passes, one lane (OWASP Password Storage Cheat Sheet). About 35 ms.
func Recommended() Parameters { return Parameters{Memory: 19 * 1024, Time: 2, Threads: 1} }

// What a stored hash may ask for. It comes from our own database; the bounds keep a damaged or planted one from taking the machine's memory.
const (
	maxMemory  = 1 << 20 // KiB: 1 GiB
	maxTime    = 64
	maxThreads = 16
	saltLength = 16
	keyLength  = 32
	maxPHC     = 512
)

// Hash is a parsed PHC string.
type Hash struct {
	Parameters
	salt, key []byte
}

// Parse reads a PHC string as String writes it, and no other spelling of it.
func Parse(phc string) (Hash, error) {
	bad := fault.New(fault.Internal, "a stored password hash cannot be read")
	if len(phc) > maxPHC {
		return Hash{}, bad
	}
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return Hash{}, bad
	}
	var h Hash
	costs := strings.Split(parts[3], ",")
	if len(costs) != 3 {
		return Hash{}, bad
	}
	memory, okMemory := cost(costs[0], "m=", maxMemory)
	time, okTime := cost(costs[1], "t=", maxTime)
	threads, okThreads := cost(costs[2], "p=", maxThreads)
	salt, errSalt := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	key, errKey := base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if !okMemory || !okTime || !okThreads || errSalt != nil || errKey != nil || len(salt) < 8 || len(key) < 16 {
		return Hash{}, bad
	}
	h.Parameters = Parameters{Memory: memory, Time: time, Threads: uint8(threads)}
	h.salt, h.key = salt, key
	if h.String() != phc {
		return Hash{}, bad // a line break in base64, a zero before a number
	}
	return h, nil
}

func cost(text, prefix string, most uint64) (uint32, bool) {
	digits, ok := strings.CutPrefix(text, prefix)
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), ok && err == nil && n >= 1 && n <= most
}

// String writes the hash as a PHC string.
func (h Hash) String() string {
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.Memory, h.Time, h.Threads, b64(h.salt), b64(h.key))
}

// Hasher makes and checks hashes, a bounded number at a time: each takes its memory, so that a flood of sign-ins would else end the machine.
// It is safe for concurrent use.
type Hasher struct {
	parameters Parameters
	slots      chan struct{}
	patience   time.Duration
	dummy      Hash
	derived    atomic.Uint64
}

// NewHasher returns a hasher that runs atOnce hashes at a time (as many as there are processors if 0), for which others wait as long as patience
// (five seconds if 0). Zero parameters are the recommended ones.
func NewHasher(p Parameters, atOnce int, patience time.Duration) *Hasher {
	if p == (Parameters{}) {
		p = Recommended()
	}
	if atOnce <= 0 {
		atOnce = runtime.NumCPU()
	}
	if patience <= 0 {
		patience = 5 * time.Second
	}
	h := &Hasher{parameters: p, slots: make(chan struct{}, atOnce), patience: patience}
	// The key is random, not derived: no password has it.
	h.dummy = Hash{Parameters: p, salt: random(saltLength), key: random(keyLength)}
	return h
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return b
}

// Derivations is how many hashes were computed. Sign-in tests hold known and unknown users to the same number.
func (h *Hasher) Derivations() uint64 { return h.derived.Load() }

// Hash returns the PHC string of a password. It does not ask whether the password is a good one: Check does.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	next := Hash{Parameters: h.parameters, salt: random(saltLength)}
	key, err := h.derive(ctx, password, next, keyLength)
	if err != nil {
		return "", err
	}
	next.key = key
	return next.String(), nil
}

// Verify reports whether a password is the one of a PHC string, and whether that was made with other parameters than are used now.
// An empty string stands for nobody: it matches nothing, and takes as long as a wrong password.
func (h *Hasher) Verify(ctx context.Context, phc, password string) (match, stale bool, err error) {
	stored := h.dummy
	if phc != "" {
		if stored, err = Parse(phc); err != nil {
			return false, false, err
		}
	}
	key, err := h.derive(ctx, password, stored, len(stored.key))
	if err != nil {
		return false, false, err
	}
	match = subtle.ConstantTimeCompare(key, stored.key) == 1 && phc != ""
	return match, match && (stored.Parameters != h.parameters || len(stored.key) != keyLength), nil
}

// derive waits for its turn and computes. A password that is too long to be anybody's is cut, so that it costs no more than others.
func (h *Hasher) derive(ctx context.Context, password string, p Hash, length int) ([]byte, error) {
	timer := time.NewTimer(h.patience)
	defer timer.Stop()
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "the request was given up").Because(ctx.Err())
	case <-timer.C:
		return nil, fault.New(fault.TooMany, "too many people sign in at this moment").WithHint("try again in a few seconds")
	}
	defer func() { <-h.slots }()
	h.derived.Add(1)
	return argon2.IDKey([]byte(normalise(password)), p.salt, p.Time, p.Memory, p.Threads, uint32(length)), nil
}

// normalise makes the same characters the same bytes, whichever keyboard typed them (NFKC: NIST SP 800-63B, 3.1.1.2).
// What is longer than any password can be is cut before that: Check refuses it where passwords are chosen.
func normalise(password string) string {
	if len(password) > MaxBytes {
		password = password[:MaxBytes+1]
	}
	return norm.NFKC.String(password)
}
