package credential

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

const (
	// mintPatience bounds one exchange with a token endpoint, and the wait for another process that has one.
	mintPatience = 15 * time.Second
	// mintPause is how long a failure is an answer too: a sandbox that tries again and again must not become our attack on a token endpoint.
	mintPause = 5 * time.Second
	// lastMoment is how long before its end a token is not used any more, even if no new one can be had.
	lastMoment = 30 * time.Second
	// minAge is how old a token must be for a server's refusal to end it: a sandbox can provoke refusals as it likes.
	minAge = time.Minute
	// maxLife bounds what an endpoint says about a token's life; unknownLife is taken if it says nothing.
	maxLife     = 24 * time.Hour
	unknownLife = 10 * time.Minute
)

// token is a minted access token.
type token struct {
	value   secret.Bytes
	version uint64 // of the credential that it was minted with
	made    time.Time
	renew   time.Time
	expires time.Time
}

// answer is what a token endpoint handed over.
type answer struct {
	value   secret.Bytes
	life    time.Duration
	refresh secret.Bytes // a new refresh token, if the old one was replaced
}

// flight is one exchange that everybody who wants a token waits for.
type flight struct {
	done  chan struct{}
	value secret.Bytes
	err   error
}

// token returns a token that is still good, and mints one if there is none. Of those who want one at the same time, one asks.
func (o *loan) token(ctx context.Context) (secret.Bytes, error) {
	o.mu.Lock()
	now := o.now()
	usable := o.minted.version == o.state.version && !o.minted.value.Empty() && now.Before(o.minted.expires.Add(-lastMoment))
	if usable && now.Before(o.minted.renew) {
		defer o.mu.Unlock()
		return o.minted.value, nil
	}
	spare := secret.Bytes{}
	if usable {
		spare = o.minted.value
	}
	if o.failed != nil && now.Before(o.retryAt) {
		defer o.mu.Unlock()
		return orSpare(spare, o.failed)
	}
	f := o.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		o.flight = f
		o.start(func(ctx context.Context) { o.fly(ctx, f) })
	}
	o.mu.Unlock()
	select {
	case <-f.done:
		if f.err != nil {
			return orSpare(spare, f.err)
		}
		return f.value, nil
	case <-ctx.Done():
		return secret.Bytes{}, ctx.Err()
	}
}

// orSpare uses a token that is about to end where no new one can be had.
func orSpare(spare secret.Bytes, err error) (secret.Bytes, error) {
	if spare.Empty() {
		return secret.Bytes{}, err
	}
	return spare, nil
}

// reject forgets a token that a server refused before its time, so that the next request gets a new one.
func (o *loan) reject(v secret.Bytes) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.minted.value.Equal(v) && o.now().Sub(o.minted.made) >= minAge {
		o.minted = token{}
	}
}

// fly mints once and tells all who wait.
func (o *loan) fly(ctx context.Context, f *flight) {
	ctx, cancel := context.WithTimeout(ctx, mintPatience)
	defer cancel()
	t, err := o.mint(ctx)
	o.mu.Lock()
	o.failed, o.flight = err, nil
	if err != nil {
		o.retryAt = o.now().Add(mintPause)
	} else {
		o.minted = t
	}
	o.mu.Unlock()
	f.value, f.err = t.value, err
	close(f.done)
}

func (o *loan) mint(ctx context.Context) (token, error) {
	if o.client == nil {
		return token{}, fault.New(fault.Internal, "no way to token endpoints")
	}
	st, err := o.current(ctx)
	if err != nil {
		return token{}, err
	}
	if st.meta.Kind == OAuth2Refresh {
		// The server may honour each refresh token once: two sandboxes that present the same one can end the whole chain.
		unlock, err := o.file.lockMint(ctx)
		if err != nil {
			return token{}, err
		}
		defer unlock()
		if st, err = o.current(ctx); err != nil {
			return token{}, err
		}
	}
	a, err := o.ask(ctx, st)
	if err != nil {
		return token{}, fault.New(fault.Unavailable, "no token for the credential %s", o.name).Because(err).WithHint("try: cofferdam credential test %s", o.name)
	}
	version := st.version
	if !a.refresh.Empty() && !a.refresh.Equal(st.secrets[RefreshToken]) {
		// The old one is worth nothing any more. It is saved even if the lender is ending.
		saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockPatience)
		defer cancel()
		if err := o.save(saving, RefreshToken, a.refresh); err != nil {
			return token{}, err
		}
		if st, err = o.current(saving); err != nil {
			return token{}, err
		}
		version = st.version
	}
	life := min(a.life, maxLife)
	now := o.now()
	return token{value: a.value, version: version, made: now, renew: now.Add(renewal(life)), expires: now.Add(life)}, nil
}

// ask speaks with the kind's endpoint.
func (o *loan) ask(ctx context.Context, st state) (answer, error) {
	if st.meta.Kind == GitHubApp {
		return askGitHub(ctx, o.client, st, o.now())
	}
	return askOAuth(ctx, o.client, st)
}

// lockMint keeps other processes from minting with the same credential. It is a lock apart from that of the content, which is never held while a network answers.
func (s *slots) lockMint(ctx context.Context) (unlock func(), err error) {
	lock := func(kind int16) error {
		return unix.FcntlFlock(s.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: 4 * slotSize, Len: 1})
	}
	for {
		err := lock(unix.F_WRLCK)
		if err == nil {
			return func() { _ = lock(unix.F_UNLCK) }, nil // fails only for a closed file, which holds no lock
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "another sandbox is asking for a token with the same credential").Because(context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}
