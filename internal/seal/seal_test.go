package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// testKey has the bytes 1, 2, 3 ... 32 counted from n.
func testKey(n byte) Key {
	b := make([]byte, keySize)
	for i := range b {
		b[i] = n + byte(i)
	}
	return newKey(b)
}

var (
	testOwner = Owner{Tenant: "local", Record: "r1"}
	testPlace = Place{Field: "value", Version: 1, About: [32]byte{1, 2, 3}}
)

// unhexed is for constants of tests.
func unhexed(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectors holds the format: what was sealed once must open for ever. The vectors were computed by another implementation (Python's cryptography) and are computed again here with plain AES-GCM and additional data written out by hand.
func TestVectors(t *testing.T) {
	kek := testKey(1)
	if kek.ID() != "83de2e4f399c1769" {
		t.Fatalf("key id %s", kek.ID())
	}
	keyContext := "00000014" + hex.EncodeToString([]byte("cofferdam data key 1")) + "00000005" + hex.EncodeToString([]byte("local")) + "00000002" + hex.EncodeToString([]byte("r1")) +
		"00000010" + hex.EncodeToString([]byte(kek.ID()))
	valueContext := "00000011" + hex.EncodeToString([]byte("cofferdam value 1")) + "00000005" + hex.EncodeToString([]byte("local")) + "00000002" + hex.EncodeToString([]byte("r1")) +
		"00000005" + hex.EncodeToString([]byte("value")) + "00000008" + "0000000000000001" + "00000020" + "010203" + strings.Repeat("00", 29)
	data := testKey(101).material.Reveal()
	byHand := func(key []byte, nonce, plain, context string) []byte {
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		return aead.Seal([]byte(nonce), []byte(nonce), []byte(plain), unhexed(t, context))
	}
	wrapped := byHand(kek.material.Reveal(), "nonce-twelve", string(data), keyContext)
	sealed := byHand(data, "nonce-number", "ghp_example", valueContext)
	for name, pair := range map[string][2]string{
		"wrapped": {hex.EncodeToString(wrapped), vectorWrapped}, "sealed": {hex.EncodeToString(sealed), vectorSealed},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %s", name, pair[0])
		}
	}
	d, err := NewKeyring(kek).Unwrap(testOwner, Wrapped{Key: kek.ID(), Data: unhexed(t, vectorWrapped)})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Open(testPlace, unhexed(t, vectorSealed)); err != nil || string(got.Reveal()) != "ghp_example" {
		t.Errorf("%q, %v", got.Reveal(), err)
	}
}

const (
	vectorWrapped = "6e6f6e63652d7477656c7665ae6523ffc9d07d10a1c6c629dd07bb83202e9bd7aa6c0d8515fbd4a5f0354904a9b21f00e6bcf2d435aebe51a2d24b3a"
	vectorSealed  = "6e6f6e63652d6e756d6265728e9c9628887b2588e6c380ade74d4e85a4bd9a12f8d6a5e0b7d0d4"
)

func newData(t testing.TB, r *Keyring, o Owner) (DataKey, Wrapped) {
	t.Helper()
	d, w, err := r.NewDataKey(o)
	if err != nil {
		t.Fatal(err)
	}
	return d, w
}

// TestPlaces moves sealed values and data keys to where they do not belong.
func TestPlaces(t *testing.T) {
	ring := NewKeyring(testKey(1), testKey(2))
	d, w := newData(t, ring, testOwner)
	sealed, err := d.Seal(testPlace, secret.New([]byte("value")))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		owner Owner
		place Place
		ok    bool
	}{
		"its own place":    {testOwner, testPlace, true},
		"another tenant":   {Owner{"other", "r1"}, testPlace, false},
		"another record":   {Owner{"local", "r2"}, testPlace, false},
		"a shifted border": {Owner{"localr", "1"}, testPlace, false},
		"another field":    {testOwner, Place{"password", 1, testPlace.About}, false},
		"another version":  {testOwner, Place{"value", 2, testPlace.About}, false},
		"other conditions": {testOwner, Place{"value", 1, [32]byte{1, 2, 4}}, false},
	} {
		got, err := ring.Unwrap(test.owner, w)
		if test.owner != testOwner && fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s: the data key opened: %v", name, err)
		}
		if err != nil {
			got = DataKey{owner: test.owner, material: d.material} // even with the key
		}
		v, err := got.Open(test.place, sealed)
		if (err == nil) != test.ok || test.ok && string(v.Reveal()) != "value" || !test.ok && fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s: %q, %v", name, v.Reveal(), err)
		}
	}
	// A wrapped key does not open as a value, nor a value as a wrapped key; nor under the name of another key at hand.
	if _, err := ring.Unwrap(testOwner, Wrapped{w.Key, sealed}); err == nil {
		t.Error("a value opened as a data key")
	}
	if _, err := ring.Unwrap(testOwner, Wrapped{testKey(2).ID(), w.Data}); err == nil {
		t.Error("a data key opened under another key's name")
	}
}

func TestKeyring(t *testing.T) {
	one, two := testKey(1), testKey(2)
	d, w := newData(t, NewKeyring(one), testOwner)
	sealed, err := d.Seal(testPlace, secret.New([]byte("value")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewKeyring(two).Unwrap(testOwner, w); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), one.ID().String()) {
		t.Errorf("without the key: %v", err)
	}
	both := NewKeyring(two, one)
	again, err := both.Rewrap(testOwner, w)
	if err != nil || again.Key != two.ID() {
		t.Fatalf("%+v, %v", again, err)
	}
	d, err = NewKeyring(two).Unwrap(testOwner, again)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := d.Open(testPlace, sealed); err != nil || string(v.Reveal()) != "value" {
		t.Errorf("after rewrapping: %q, %v", v.Reveal(), err)
	}
	for name, err := range map[string]error{
		"zero keyring": func() error { _, _, err := new(Keyring).NewDataKey(testOwner); return err }(),
		"zero key":     func() error { _, _, err := NewKeyring(Key{}).NewDataKey(testOwner); return err }(),
		"zero owner":   func() error { _, _, err := both.NewDataKey(Owner{}); return err }(),
		"zero wrapped": func() error { _, err := both.Unwrap(testOwner, Wrapped{}); return err }(),
		"zero data key": func() error {
			_, err := DataKey{}.Seal(testPlace, secret.New([]byte("x")))
			return err
		}(),
	} {
		if err == nil {
			t.Errorf("%s works", name)
		}
	}
	if a, b := NewKey(), NewKey(); a.ID() == b.ID() {
		t.Error("two new keys are one")
	}
}

func TestParseKey(t *testing.T) {
	raw := testKey(7).material.Reveal()
	std, digits := base64.StdEncoding.EncodeToString(raw), hex.EncodeToString(raw)
	for _, test := range []struct {
		in string
		ok bool
	}{
		{std, true}, {std + "\n", true}, {std + "\r\n", true}, {digits, true}, {strings.ToUpper(digits) + "\n", true}, {string(raw), true},
		{"", false}, {std[:43], false}, {std + "\n\n", false}, {" " + std, false}, {digits[:63], false}, {digits + "0", false}, {string(raw[:31]), false}, {string(raw) + "\n", false},
		{strings.Repeat("A", 43) + "=", false}, {strings.Repeat("0", 64), false}, {strings.Repeat("x", 32), false}, {"passwordpasswordpassword", false}, {strings.Repeat("z", 64), false},
	} {
		k, err := ParseKey([]byte(test.in))
		if (err == nil) != test.ok || test.ok && k.ID() != testKey(7).ID() {
			t.Errorf("%q: %s, %v", test.in, k.ID(), err)
		}
	}
	k := testKey(9)
	if again, err := ParseKey(k.Encode()); err != nil || again.ID() != k.ID() {
		t.Error(err)
	}
	for _, shown := range []string{fmt.Sprintf("%v %+v %#v", k, k, k), fmt.Sprint(&k)} {
		if strings.Contains(shown, hex.EncodeToString(k.material.Reveal()[:4])) || strings.Contains(shown, string(k.material.Reveal())) {
			t.Errorf("a key was printed: %s", shown)
		}
	}
}

// FuzzOpen holds what authenticated encryption promises: what was sealed opens, and whatever is changed about it does not.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("ghp_example"), "value", uint64(1), uint16(0), byte(1))
	f.Add([]byte{}, "", uint64(0), uint16(27), byte(0x80))
	f.Add(bytes.Repeat([]byte("x"), 1000), "password", uint64(1<<63), uint16(500), byte(0xff))
	ring := NewKeyring(testKey(1))
	d, w, err := ring.NewDataKey(testOwner)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, plain []byte, field string, version uint64, at uint16, flip byte) {
		p := Place{Field: field, Version: version}
		sealed, err := d.Seal(p, secret.New(plain))
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != len(plain)+overhead || len(plain) > 8 && bytes.Contains(sealed, plain) {
			t.Fatal("not sealed")
		}
		if v, err := d.Open(p, sealed); err != nil || !bytes.Equal(v.Reveal(), plain) {
			t.Fatalf("%q: %v", v.Reveal(), err)
		}
		if _, err := d.Open(Place{Field: field + "x", Version: version}, sealed); err == nil {
			t.Fatal("opened elsewhere")
		}
		if _, err := d.Open(p, sealed[:int(at)%len(sealed)]); err == nil {
			t.Fatal("opened when cut")
		}
		if flip == 0 {
			return
		}
		sealed[int(at)%len(sealed)] ^= flip
		if _, err := d.Open(p, sealed); err == nil {
			t.Fatal("opened when changed")
		}
		changed := bytes.Clone(w.Data)
		changed[int(at)%len(changed)] ^= flip
		if _, err := ring.Unwrap(testOwner, Wrapped{w.Key, changed}); err == nil {
			t.Fatal("a changed data key opened")
		}
	})
}

// FuzzParseKey holds that what is accepted is one key, whichever way it is written.
func FuzzParseKey(f *testing.F) {
	f.Add([]byte(base64.StdEncoding.EncodeToString(testKey(1).material.Reveal()) + "\n"))
	f.Add([]byte(hex.EncodeToString(testKey(1).material.Reveal())))
	f.Add(bytes.Clone(testKey(1).material.Reveal()))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseKey(data)
		if err != nil {
			return
		}
		again, err := ParseKey(k.Encode())
		if err != nil || again.ID() != k.ID() || k.material.Len() != keySize {
			t.Fatalf("%v", err)
		}
	})
}
