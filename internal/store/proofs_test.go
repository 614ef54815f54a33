package store_test

import (
	"crypto/sha256"
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

func hash(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func TestProofs(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
		proof := func(secret, kind, id, tenant, subject string, end time.Duration) store.Proof {
			return store.Proof{Hash: hash(secret), Kind: kind, ID: id, Tenant: tenant, Subject: subject, Data: json.RawMessage(`{"a":1}`), Created: now, Seen: now, Expires: now.Add(end)}
		}
		a := proof("a", "session", "1", "t", "ann", time.Hour)
		for _, p := range []store.Proof{a, proof("b", "session", "2", "t", "ann", time.Hour), proof("old", "session", "3", "t", "ann", time.Nanosecond), proof("c", "token", "4", "t", "ann", time.Hour),
			proof("d", "session", "5", "t", "bob", time.Hour), proof("e", "session", "6", "u", "ann", time.Hour)} {
			if err := db.PutProof(ctx, p); err != nil {
				t.Fatal(err)
			}
		}
		is(t, db.PutProof(ctx, a), fault.Conflict)
		is(t, db.PutProof(ctx, store.Proof{Hash: hash("x"), Kind: "session"}), fault.Internal)

		if got, err := db.Proof(ctx, "session", a.Hash, now); err != nil || cmp.Diff(a, got) != "" {
			t.Error(err, cmp.Diff(a, got))
		}
		for _, c := range []struct {
			kind, secret string
			now          time.Time
		}{{"session", "none", now}, {"session", "old", now}, {"token", "a", now}, {"session", "a", now.Add(time.Hour)}} {
			_, err := db.Proof(ctx, c.kind, hash(c.secret), c.now)
			is(t, err, fault.NotFound)
			_, err = db.UseProof(ctx, c.kind, hash(c.secret), c.now)
			is(t, err, fault.NotFound)
		}

		if err := db.TouchProof(ctx, a.Hash, now.Add(time.Minute), time.Time{}); err != nil {
			t.Error(err)
		}
		if got, _ := db.Proof(ctx, "session", a.Hash, now); !got.Seen.Equal(now.Add(time.Minute)) || !got.Expires.Equal(a.Expires) {
			t.Errorf("%+v", got)
		}
		if err := db.TouchProof(ctx, a.Hash, now, store.Never()); err != nil {
			t.Error(err)
		}
		if _, err := db.Proof(ctx, "session", a.Hash, now.AddDate(1000, 0, 0)); err != nil {
			t.Error(err)
		}
		is(t, db.TouchProof(ctx, hash("none"), now, now), fault.NotFound)

		if all, err := db.Proofs(ctx, "session", "t", "ann", now); err != nil || len(all) != 2 {
			t.Error(all, err)
		}
		is(t, db.DropProof(ctx, "session", "t", "bob", "1"), fault.NotFound)
		is(t, db.DropProof(ctx, "session", "u", "ann", "1"), fault.NotFound)
		is(t, db.DropProof(ctx, "token", "t", "ann", "1"), fault.NotFound)
		if err := db.DropProof(ctx, "session", "t", "ann", "1"); err != nil {
			t.Error(err)
		}
		if n, err := db.DropProofs(ctx, "session", "t", "ann", hash("b")); n != 1 || err != nil { // the old one
			t.Error(n, err)
		}
		for _, secret := range []string{"b", "d", "e"} {
			if _, err := db.Proof(ctx, "session", hash(secret), now); err != nil {
				t.Error(secret, err)
			}
		}
	})
}

// TestUseProofOnce: a proof that is used up is used once, however many try at once.
func TestUseProofOnce(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		now := time.Now()
		if err := db.PutProof(t.Context(), store.Proof{Hash: hash("x"), Kind: "reset", Expires: now.Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
		won := race(50, func(int) error {
			_, err := db.UseProof(t.Context(), "reset", hash("x"), now)
			return err
		}, func(err error) { is(t, err, fault.NotFound) })
		if won != 1 {
			t.Errorf("%d used it", won)
		}
	})
}

func TestIdempotent(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
		begin := func(owner string, at time.Time) (store.Idempotent, bool) {
			t.Helper()
			i, found, err := db.BeginIdempotent(ctx, owner, "key", hash("request"), at)
			if err != nil {
				t.Fatal(err)
			}
			return i, found
		}
		if _, found := begin("ann", now); found {
			t.Error("found what nobody began")
		}
		if i, found := begin("ann", now); !found || i.Status != 0 || i.Request != hash("request") {
			t.Errorf("%+v %v", i, found)
		}
		if _, found := begin("bob", now); found {
			t.Error("one owner's key is another's")
		}
		answer := store.Idempotent{Request: hash("request"), Status: 201, Header: json.RawMessage(`{"A":["b"]}`), Body: []byte("\x00\xffbody")}
		if err := db.EndIdempotent(ctx, "ann", "key", answer); err != nil {
			t.Error(err)
		}
		if i, found := begin("ann", now.Add(time.Hour)); !found || cmp.Diff(answer, i) != "" {
			t.Error(found, cmp.Diff(answer, i))
		}
		is(t, db.EndIdempotent(ctx, "ann", "key", answer), fault.Conflict)
		if err := db.EndIdempotent(ctx, "bob", "key", store.Idempotent{Request: hash("request")}); err != nil {
			t.Error(err)
		}
		if _, found := begin("bob", now); found {
			t.Error("found what was forgotten")
		}
		if _, found := begin("bob", now.Add(9*time.Minute)); !found {
			t.Error("began what is under way")
		}
		if _, found := begin("bob", now.Add(10*time.Minute)); found {
			t.Error("what died with its process can never be tried again")
		}
		won := race(20, func(int) error {
			_, found, err := db.BeginIdempotent(ctx, "all", "key", hash("r"), now)
			if err == nil && found {
				err = fault.New(fault.Conflict, "found")
			}
			return err
		}, func(err error) { is(t, err, fault.Conflict) })
		if won != 1 {
			t.Errorf("%d began it", won)
		}
	})
}

func TestSweep(t *testing.T) {
	both(t, func(t *testing.T, db *store.DB) {
		ctx := t.Context()
		now := time.Date(2026, 5, 30, 0, 0, 0, 0, time.UTC)
		for i, age := range []time.Duration{time.Hour, 8 * 24 * time.Hour} {
			secret := string(rune('a' + i))
			if err := db.PutProof(ctx, store.Proof{Hash: hash(secret), Kind: "session", Tenant: "t", Subject: secret, Created: now.Add(-age), Expires: now.Add(2*time.Hour - age)}); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Emit(ctx, store.Event{Tenant: "t", Type: secret, Time: now.Add(-age)}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := db.BeginIdempotent(ctx, secret, "key", hash("r"), now.Add(-age)); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := db.Sweep(ctx, now); err != nil {
				t.Fatal(err)
			}
		}
		if events, err := db.Events(ctx, "t", 0, 10); err != nil || len(events) != 1 || events[0].Type != "a" {
			t.Error(events, err)
		}
		long := now.AddDate(0, 0, -30) // even long ago the one that was swept is not there
		if _, err := db.Proof(ctx, "session", hash("a"), long); err != nil {
			t.Error(err)
		}
		_, err := db.Proof(ctx, "session", hash("b"), long)
		is(t, err, fault.NotFound)
		if _, found, err := db.BeginIdempotent(ctx, "a", "key", hash("r"), long); !found || err != nil {
			t.Error(found, err)
		}
		if _, found, err := db.BeginIdempotent(ctx, "b", "key", hash("r"), long); found || err != nil {
			t.Error(found, err)
		}
	})
}
