package lfs

import (
	"container/list"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	maxActions = 10_000   // in a table
	maxHeld    = 16 << 20 // bytes of URLs and headers in a table; a signed URL of an object store has one to two thousand
	maxLife    = time.Hour
	maxHref    = 8 << 10 // bytes of one URL, and of all headers of one action
	maxHeaders = 32      // of one action
)

// Action is what an upstream said may be done with one object: a request to make. Its URL and header often are credentials, so printing or
// encoding an Action shows neither.
type Action struct {
	Method     string // GET to download, PUT to upload, POST to say that an upload is complete
	URL        *url.URL
	Header     http.Header // the upstream's own, without what is between two hops or about the body's length
	Object                 // the content: fetched or put, it must pass a VerifyingReader
	Repository string      // as Rewrite was told it
	Expires    time.Time
}

// Body is the body of the request that says that an upload is complete, and nil for other actions. A client's own is not sent on.
func (a Action) Body() []byte {
	if a.Method != http.MethodPost {
		return nil
	}
	return encode(a.Object)
}

// Format prints the action without its secrets, whatever the verb.
func (a Action) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(a.describe())) } // as fmt's own do

// MarshalText encodes the action without its secrets; log/slog and encoding/json use it.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.describe()), nil }

func (a Action) describe() string { return "lfs action " + a.Method + " " + a.OID }

// size is about what the action takes in memory.
func (a Action) size() int {
	n := len(a.URL.String()) + len(a.Repository) + len(a.OID)
	for name, values := range a.Header {
		for _, v := range values {
			n += len(name) + len(v)
		}
	}
	return n
}

// Table holds the actions that upstreams gave out for one sandbox, each by a token that cannot be guessed. It is bounded in number, bytes and time:
// where it is full the oldest makes room, since clients use what they were given at once. It is safe for concurrent use.
type Table struct {
	mu   sync.Mutex
	held map[[sha256.Size]byte]*list.Element // by the token's hash, so that looking one up tells nothing of the others by its time
	old  *list.List                          // of entries, oldest first
	size int
}

type entry struct {
	key    [sha256.Size]byte
	action Action
	size   int
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{held: map[[sha256.Size]byte]*list.Element{}, old: list.New()}
}

// Take returns the action of a token that was given out for this method. It stays in the table until it expires: clients try again.
// A token of another method, of an action that is over, or never given out is no token.
func (t *Table) Take(token, method string) (Action, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, ok := t.held[sha256.Sum256([]byte(token))]
	if !ok {
		return Action{}, false
	}
	a := at.Value.(*entry).action
	if !time.Now().Before(a.Expires) {
		t.drop(at)
		return Action{}, false
	}
	if a.Method != method {
		return Action{}, false
	}
	u := *a.URL
	a.URL, a.Header = &u, a.Header.Clone()
	return a, true
}

// Len returns how many actions are held.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.held)
}

// add holds an action, and returns its token.
func (t *Table) add(a Action) string {
	token := rand.Text() // 128 bits at least
	e := &entry{key: sha256.Sum256([]byte(token)), action: a, size: a.size()}
	t.mu.Lock()
	defer t.mu.Unlock()
	for first := t.old.Front(); first != nil; first = t.old.Front() {
		if len(t.held) < maxActions && t.size+e.size <= maxHeld && time.Now().Before(first.Value.(*entry).action.Expires) {
			break
		}
		t.drop(first)
	}
	t.held[e.key] = t.old.PushBack(e)
	t.size += e.size
	return token
}

// drop forgets an entry. mu is held.
func (t *Table) drop(at *list.Element) {
	e := t.old.Remove(at).(*entry)
	delete(t.held, e.key)
	t.size -= e.size
}
