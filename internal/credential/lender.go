package credential

import (
	"context"
	"errors"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// watchEvery is how soon an open connection notices that its credential was removed. A new request notices at once.
const watchEvery = 200 * time.Millisecond

// Options says what a lender works with.
type Options struct {
	Client *http.Client     // for token endpoints; see NewClient. Nil: kinds that mint cannot be lent
	Now    func() time.Time // nil: time.Now
}

// Lender lends the credentials that were opened for it. It holds their files and data keys, so that it works on after its process has given up all other rights.
// It is safe for concurrent use.
type Lender struct {
	loans map[Name]*loan
	stop  context.CancelFunc
	work  sync.WaitGroup
}

// loan is one credential that is being lent.
type loan struct {
	name   Name
	id     string // of the record; another one under the same name is another credential
	key    seal.DataKey
	file   *slots
	client *http.Client
	now    func() time.Time
	start  func(func(context.Context)) // runs a function in a goroutine that Close ends and waits for

	mu      sync.Mutex
	heads   heads
	state   state
	minted  token
	flight  *flight
	failed  error // of the last attempt to mint
	retryAt time.Time
}

// state is one version of a credential, open. It does not change.
type state struct {
	version uint64
	meta    Meta
	secrets Material
}

// Open opens credentials for lending. Each must be there and open under the ring. The ring is not kept. Close ends the lender.
func (s *Store) Open(ctx context.Context, ring *seal.Keyring, o Options, names ...Name) (*Lender, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	// The lender's own lifetime, which its requests to token endpoints live in; a request of a sandbox that ends does not end what others wait for.
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &Lender{loans: map[Name]*loan{}, stop: stop}
	for _, name := range names {
		if l.loans[name] != nil {
			continue
		}
		one, err := s.openOne(ctx, ring, name)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		one.client, one.now = o.Client, o.Now
		one.start = func(f func(context.Context)) { l.work.Go(func() { f(life) }) }
		l.loans[name] = one
	}
	return l, nil
}

func (s *Store) openOne(ctx context.Context, ring *seal.Keyring, name Name) (*loan, error) {
	file, err := s.file(name, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	one := &loan{name: name, file: file}
	err = func() error {
		content, _, err := file.read(ctx)
		if err != nil {
			return err
		}
		r, _, err := decodeRecord(name, content)
		if err != nil {
			return err
		}
		one.id = r.ID
		if one.key, err = ring.Unwrap(r.owner(), r.DataKey); err != nil {
			return sealedAs(name, err)
		}
		_, err = one.current(ctx)
		return err
	}()
	if err != nil {
		return nil, errors.Join(err, file.file.Close())
	}
	return one, nil
}

// Close ends what is under way, wipes the keys, and lends nothing any more. No call of Lend may begin meanwhile.
func (l *Lender) Close() error {
	l.stop()
	l.work.Wait()
	var problems []error
	for _, one := range l.loans {
		one.key.Wipe()
		problems = append(problems, one.file.file.Close())
	}
	return errors.Join(problems...)
}

// Meta returns what is known of a credential that was opened.
func (l *Lender) Meta(ctx context.Context, name Name) (Meta, error) {
	one, err := l.loan(name)
	if err != nil {
		return Meta{}, err
	}
	st, err := one.current(ctx)
	return st.meta, err
}

// Lend returns a grant to use a credential for one request. It checks the request against the credential's own conditions, whatever was decided before; looks whether the
// credential is still there; and mints a token where the kind needs one that is still good.
//
// Denied: outside the conditions. NotFound: removed, or never opened. Unavailable: the token endpoint, or the store, does not answer as it should.
func (l *Lender) Lend(ctx context.Context, name Name, want Request) (*Grant, error) {
	one, err := l.loan(name)
	if err != nil {
		return nil, err
	}
	st, err := one.current(ctx)
	if err != nil {
		return nil, err
	}
	if err := st.meta.Scope.Allow(want); err != nil {
		return nil, err
	}
	g := &Grant{loan: one, want: want, state: st}
	if st.meta.Kind.mints() {
		if g.minted, err = one.token(ctx); err != nil {
			return nil, err
		}
	}
	g.prepare()
	return g, nil
}

// Watch calls gone once for each credential that is removed while ctx lasts, so that connections on which it was used can be closed.
func (l *Lender) Watch(ctx context.Context, gone func(Name)) error {
	told := map[Name]bool{}
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		for name, one := range l.loans {
			if !told[name] && one.removed() {
				told[name] = true
				gone(name)
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Lender) loan(name Name) (*loan, error) {
	if one := l.loans[name]; one != nil {
		return one, nil
	}
	return nil, fault.New(fault.NotFound, "there is no credential %.80q to lend here", name)
}

// removed reports whether the credential is gone. It costs two system calls.
func (o *loan) removed() bool {
	if o.file.gone() {
		return true
	}
	h, err := o.file.peek()
	return err == nil && h == heads{}
}

// current returns the credential as it is now. As long as its file did not change it costs three system calls.
func (o *loan) current(ctx context.Context) (state, error) {
	if o.file.gone() {
		return state{}, errGone
	}
	h, err := o.file.peek()
	if err != nil {
		return state{}, err
	}
	o.mu.Lock()
	st, same := o.state, o.heads == h
	o.mu.Unlock()
	if same && st.version > 0 {
		return st, nil
	}
	return o.reload(ctx)
}

func (o *loan) reload(ctx context.Context) (state, error) {
	content, h, err := o.file.read(ctx)
	if err != nil {
		return state{}, err
	}
	r, m, err := decodeRecord(o.name, content)
	if err != nil {
		return state{}, err
	}
	if r.ID != o.id {
		return state{}, errGone
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state.version == r.Version { // rewrapped only
		o.heads = h
		return o.state, nil
	}
	secrets, err := r.open(o.key)
	if err != nil {
		return state{}, sealedAs(o.name, err)
	}
	if o.state.version > r.Version {
		return o.state, nil // an older read that lost its race
	}
	o.state, o.heads = state{r.Version, m, secrets}, h
	return o.state, nil
}

// save seals a secret that a token endpoint replaced, for all who use the credential.
func (o *loan) save(ctx context.Context, f Field, v secret.Bytes) error {
	err := updateRecord(ctx, o.file, o.name, func(r record, m Meta) (record, error) {
		if r.ID != o.id {
			return r, errGone
		}
		return r.change(o.key, m, Material{f: v})
	})
	if err != nil {
		return sealedAs(o.name, err)
	}
	_, err = o.reload(ctx)
	return err
}
