package control

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cofferdam/cofferdam/internal/audit"
)

// SignIn is one attempt to prove who one is.
type SignIn struct {
	OK bool
	// Tenant and User are whose account it is, where that is known. What was typed as an email address is no part of it: people type passwords there.
	Tenant, User string
	Method       string // password, totp, recovery, passkey, oidc, invitation, reset, setup
	Address      netip.Addr
	Reason       string // of a refusal, in words of ours
}

// Refused attempts are recorded one by one up to a burst, which refills slowly. What goes beyond is counted into the next record, so that nobody can fill
// the disk by guessing.
const (
	refusalBurst  = 100
	refusalRefill = 2 // a second
)

// refusals counts refused attempts. Its zero value is ready; it is safe for concurrent use.
type refusals struct {
	mu      sync.Mutex
	spent   float64 // of the burst
	at      time.Time
	skipped uint64
}

// take says whether one more is to be recorded, and how many it stands for.
func (r *refusals) take(now time.Time) (count uint64, record bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if passed := now.Sub(r.at).Seconds(); passed > 0 {
		r.spent = max(r.spent-passed*refusalRefill, 0)
		r.at = now
	}
	if r.spent >= refusalBurst {
		r.skipped++
		return 0, false
	}
	r.spent++
	count = 1 + r.skipped
	r.skipped = 0
	return count, true
}

// RecordSignIn records an attempt to sign in. Where a sign-in that is right cannot be recorded, it must not happen.
func (s *Service) RecordSignIn(ctx context.Context, in SignIn) error {
	e := audit.Event{Kind: audit.SignedIn, Tenant: in.Tenant, Principal: "unknown", Detail: "by " + in.Method}
	if in.User != "" {
		e.Principal = "user:" + in.User
	}
	if in.Address.IsValid() {
		e.Address = in.Address.Unmap().WithZone("").String()
	}
	if !in.OK {
		count, record := s.refusals.take(s.now())
		if !record {
			return nil
		}
		e.Kind, e.Reason, e.Count = audit.SignInRefused, in.Reason, count
		if count == 1 {
			e.Count = 0
		}
	}
	if err := s.Options.Audit.Append(ctx, e); err != nil {
		return fmt.Errorf("record a sign-in: %w", err)
	}
	return nil
}
