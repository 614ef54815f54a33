package password

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// cheap keeps tests quick; what is tested is not the cost.
func cheap() Parameters { return Parameters{Memory: 64, Time: 1, Threads: 1} }

func TestHash(t *testing.T) {
	h := NewHasher(cheap(), 2, time.Second)
	phc, err := h.Hash(t.Context(), "correct horse")
	if err != nil || !strings.HasPrefix(phc, "$argon2id$v=19$m=64,t=1,p=1$") {
		t.Fatalf("%q, %v", phc, err)
	}
	again, err := h.Hash(t.Context(), "correct horse")
	if err != nil || again == phc {
		t.Error("two hashes of one password are alike: no salt")
	}
	for _, c := range []struct {
		password string
		match    bool
	}{{"correct horse", true}, {"correct horsf", false}, {"", false}, {"correct horse ", false}} {
		if match, stale, err := h.Verify(t.Context(), phc, c.password); match != c.match || stale || err != nil {
			t.Errorf("%q: match %v, stale %v, %v", c.password, match, stale, err)
		}
	}
	if _, _, err := h.Verify(t.Context(), "$argon2id$broken", "x"); fault.KindOf(err) != fault.Internal {
		t.Errorf("a broken hash: %v", err)
	}
}

func TestStale(t *testing.T) {
	old, err := NewHasher(cheap(), 1, time.Second).Hash(t.Context(), "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	now := NewHasher(Parameters{}, 1, time.Second)
	if match, stale, err := now.Verify(t.Context(), old, "correct horse"); !match || !stale || err != nil {
		t.Errorf("match %v, stale %v, %v", match, stale, err)
	}
	if match, stale, err := now.Verify(t.Context(), old, "wrong"); match || stale || err != nil {
		t.Errorf("a wrong password is to be hashed anew: match %v, stale %v, %v", match, stale, err)
	}
	fresh, err := now.Hash(t.Context(), "correct horse")
	if err != nil || !strings.HasPrefix(fresh, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("%q, %v", fresh, err)
	}
}

func TestNobody(t *testing.T) {
	h := NewHasher(cheap(), 1, time.Second)
	for _, password := range []string{"", "anything", strings.Repeat("x", 5000)} {
		before := h.Derivations()
		if match, stale, err := h.Verify(t.Context(), "", password); match || stale || err != nil {
			t.Errorf("nobody has %q: %v, %v, %v", password, match, stale, err)
		}
		if n := h.Derivations() - before; n != 1 {
			t.Errorf("nobody costs %d hashes, a wrong password 1", n)
		}
	}
}

func TestNormalised(t *testing.T) {
	h := NewHasher(cheap(), 1, time.Second)
	phc, err := h.Hash(t.Context(), "cafe\u0301 au lait") // as some keyboards type it
	if err != nil {
		t.Fatal(err)
	}
	if match, _, err := h.Verify(t.Context(), phc, "caf\u00e9 au lait"); !match || err != nil {
		t.Errorf("the same characters in other bytes: %v, %v", match, err)
	}
}

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHasher(cheap(), 1, 5*time.Second)
		h.slots <- struct{}{} // somebody hashes for ever
		start := time.Now()
		_, err := h.Hash(t.Context(), "correct horse")
		if fault.KindOf(err) != fault.TooMany || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := h.Hash(ctx, "correct horse"); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("given up: %v", err)
		}
		<-h.slots
		if _, err := h.Hash(t.Context(), "correct horse"); err != nil {
			t.Errorf("the slot is free again: %v", err)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	h := NewHasher(cheap(), 2, time.Minute)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := h.Hash(t.Context(), "correct horse"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(h.slots) != 0 || h.Derivations() != 50 {
		t.Errorf("%d slots still taken, %d hashes", len(h.slots), h.Derivations())
	}
}

func TestCheck(t *testing.T) {
	about := []string{"ada.lovelace@analytical.example", "Ada King"}
	for _, c := range []struct {
		password string
		ok       bool
	}{
		{"horse battery", true},
		{"zsörtölő hód", true},
		{"7 chars", false},
		{"8 chars!", true},
		{"ﬀﬀﬀﬀ", false}, // eight characters once normalised, but one letter
		{strings.Repeat("abcd", 256), true},
		{strings.Repeat("abcd", 256) + "e", false},
		{"bad \xff utf-8", false},
		{"password", false},
		{"PassWord", false},
		{"password123!", false},
		{"!!iloveyou!!", false},
		{"aaaaaaaaaaaa", false},
		{"abababababab", false},
		{"23456789", false},
		{"hgfedcba", false},
		{"cofferdam1", false},
		{"Cofferdam2026", false},
		{"lovelace1815", false},
		{"ada.lovelace@analytical.example", false},
		{"adalovelace99", false},
		{"lovelace likes trains", true},
		{"analytical!", false},
	} {
		if err := Check(c.password, about...); (err == nil) != c.ok {
			t.Errorf("%q: %v", c.password, err)
		} else if err != nil && fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: kind %v", c.password, fault.KindOf(err))
		}
	}
	if n := len(common()); n < 1000 {
		t.Errorf("%d common passwords", n)
	}
}

func TestCommonList(t *testing.T) {
	for word := range common() {
		if len(word) < MinCharacters || word != strings.ToLower(word) {
			t.Errorf("%q can never be asked for", word)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY")
	f.Add("$argon2id$v=19$m=019456,t=2,p=1$c29tZXNhbHQ$MDEyMzQ1Njc4OWFiY2RlZg")
	f.Add("$argon2i$v=19$m=1,t=1,p=1$$")
	f.Add("$argon2id$v=19$m=4294967295,t=2,p=1$c29tZXNhbHQ$MDEyMzQ1Njc4OWFiY2RlZg")
	f.Fuzz(func(t *testing.T, phc string) {
		h, err := Parse(phc)
		if err != nil {
			return
		}
		if h.String() != phc {
			t.Errorf("%q is read as %q", phc, h.String())
		}
		if h.Memory == 0 || h.Memory > maxMemory || h.Time == 0 || h.Time > maxTime || h.Threads == 0 || h.Threads > maxThreads || len(h.key) < 16 {
			t.Errorf("%q asks for %+v", phc, h.Parameters)
		}
	})
}
