package terminal

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"sync"
)

// Token recognises the one runner of a sandbox, once. It keeps only a hash. The zero value accepts nothing. It is safe for concurrent use.
type Token struct {
	mu   sync.Mutex
	hash [sha256.Size]byte
	live bool
}

// NewToken returns a fresh Token and the text that proves it, for frame.Boot.
func NewToken() (*Token, string) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	text := hex.EncodeToString(b[:])
	return &Token{hash: sha256.Sum256([]byte(text)), live: true}, text
}

// take says whether text proves the token, and if so makes it worthless. A wrong text changes nothing: it must not lock the runner out.
func (t *Token) take(text []byte) bool {
	if t == nil {
		return false
	}
	hash := sha256.Sum256(text)
	t.mu.Lock()
	defer t.mu.Unlock()
	ok := subtle.ConstantTimeCompare(hash[:], t.hash[:]) == 1 && t.live
	if ok {
		t.live, t.hash = false, [sha256.Size]byte{}
	}
	return ok
}
