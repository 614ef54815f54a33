package seal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func testVault(t *testing.T) (*Vault, map[string]string) {
	t.Helper()
	env := map[string]string{}
	return OpenVault(filepath.Join(t.TempDir(), "seal"), func(name string) string { return env[name] }), env
}

func initialised(t *testing.T, v *Vault, s Source) KeyID {
	t.Helper()
	id, err := v.Init(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// current returns the id of the key that v seals under, or the error.
func current(t *testing.T, v *Vault) (id KeyID, err error) {
	t.Helper()
	err = v.Use(t.Context(), func(r *Keyring) error { id = r.Current(); return nil })
	return id, err
}

// tree is every file of the vault and its content.
func tree(t *testing.T, v *Vault) string {
	t.Helper()
	entries, err := os.ReadDir(v.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		data, _ := os.ReadFile(filepath.Join(v.dir, e.Name()))
		info, _ := e.Info()
		fmt.Fprintf(&b, "%s %v %q\n", e.Name(), info.Mode(), data)
	}
	return b.String()
}

func TestVaultLife(t *testing.T) {
	v, _ := testVault(t)
	if _, err := current(t, v); fault.KindOf(err) != fault.Unavailable || !strings.Contains(fault.HintOf(err), "seal init") {
		t.Errorf("before init: %v", err)
	}
	if tree(t, v) != "" {
		t.Error("looking made something")
	}
	first := initialised(t, v, Source{})
	if id, err := current(t, v); err != nil || id != first {
		t.Fatalf("%s, %v", id, err)
	}
	info, err := os.Stat(filepath.Join(v.dir, first.String()+".key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := v.Init(t.Context(), Source{}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a second init: %v", err)
	}
	var w Wrapped
	if err := v.Use(t.Context(), func(r *Keyring) error { _, w, err = r.NewDataKey(testOwner); return err }); err != nil {
		t.Fatal(err)
	}
	second, err := v.Advance(t.Context(), Source{})
	if err != nil || second == first {
		t.Fatalf("%s, %v", second, err)
	}
	err = v.Use(t.Context(), func(r *Keyring) error {
		if r.Current() != second || len(r.IDs()) != 2 {
			t.Errorf("%v", r.IDs())
		}
		_, err := r.Unwrap(testOwner, w)
		return err
	})
	if err != nil {
		t.Errorf("under the older key: %v", err)
	}
	inUse := func() (map[KeyID]int, error) { return map[KeyID]int{first: 1, second: 3}, nil }
	if gone, err := v.Prune(t.Context(), inUse); err != nil || len(gone) != 0 {
		t.Errorf("pruned a key in use: %v, %v", gone, err)
	}
	if gone, err := v.Prune(t.Context(), func() (map[KeyID]int, error) { return nil, errors.New("unreadable") }); err == nil || len(gone) != 0 {
		t.Errorf("pruned without knowing: %v, %v", gone, err)
	}
	gone, err := v.Prune(t.Context(), func() (map[KeyID]int, error) { return map[KeyID]int{second: 4}, nil })
	if err != nil || len(gone) != 1 || gone[0] != first {
		t.Errorf("%v, %v", gone, err)
	}
	if _, err := os.Stat(filepath.Join(v.dir, first.String()+".key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key file is still there: %v", err)
	}
	// The current key stays even if nothing is sealed under it.
	if gone, err := v.Prune(t.Context(), func() (map[KeyID]int, error) { return nil, nil }); err != nil || len(gone) != 0 {
		t.Errorf("%v, %v", gone, err)
	}
	if list, err := v.Status(t.Context()); err != nil || len(list) != 1 || !list[0].Current || list[0].Problem != "" || list[0].ID != second {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestVaultStops: with a wrong, missing or exposed key nothing is used, and nothing is written.
func TestVaultStops(t *testing.T) {
	other := NewKey()
	for name, test := range map[string]struct {
		harm func(t *testing.T, key string)
		kind fault.Kind
		say  string
	}{
		"nothing happened": {func(*testing.T, string) {}, 0, ""},
		"missing":          {func(t *testing.T, key string) { must(t, os.Remove(key)) }, fault.Unavailable, "is gone"},
		"another key":      {func(t *testing.T, key string) { must(t, os.WriteFile(key, other.Encode(), 0o600)) }, fault.Unavailable, "holds the key " + other.ID().String()},
		"cut":              {func(t *testing.T, key string) { must(t, os.Truncate(key, 20)) }, fault.Invalid, "no key"},
		"empty":            {func(t *testing.T, key string) { must(t, os.Truncate(key, 0)) }, fault.Invalid, "no key"},
		"too long":         {func(t *testing.T, key string) { must(t, os.Truncate(key, 1<<20)) }, fault.Invalid, "too long"},
		"open to others":   {func(t *testing.T, key string) { must(t, os.Chmod(key, 0o640)) }, fault.Denied, "others may"},
		"a link": {func(t *testing.T, key string) {
			must(t, os.Rename(key, key+".real"))
			must(t, os.Symlink(key+".real", key))
		}, fault.Unavailable, "cannot open"},
		"a directory":    {func(t *testing.T, key string) { must(t, os.Remove(key)); must(t, os.Mkdir(key, 0o700)) }, fault.Denied, "not a regular file"},
		"open directory": {func(t *testing.T, key string) { must(t, os.Chmod(filepath.Dir(key), 0o722)) }, fault.Denied, "others can write"},
		"damaged index": {func(t *testing.T, key string) {
			must(t, os.WriteFile(filepath.Join(filepath.Dir(key), indexName), []byte(`{"format":1,"keys":[{"id":"x","bogus":1}]}`), 0o600))
		}, fault.Conflict, "damaged"},
		"index of later": {func(t *testing.T, key string) {
			must(t, os.WriteFile(filepath.Join(filepath.Dir(key), indexName), []byte(`{"format":2,"keys":[]}`), 0o600))
		}, fault.Unsupported, "format 2"},
	} {
		t.Run(name, func(t *testing.T) {
			v, _ := testVault(t)
			id := initialised(t, v, Source{})
			test.harm(t, filepath.Join(v.dir, id.String()+".key"))
			before, called := tree(t, v), false
			err := v.Use(t.Context(), func(*Keyring) error { called = true; return nil })
			if test.say == "" {
				if err != nil || !called {
					t.Fatalf("%v", err)
				}
				return
			}
			if called || fault.KindOf(err) != test.kind || !strings.Contains(err.Error(), test.say) {
				t.Errorf("called %v, %v: %v", called, fault.KindOf(err), err)
			}
			if _, err := v.Advance(t.Context(), Source{}); err == nil {
				t.Error("advanced")
			}
			if after := tree(t, v); after != before {
				t.Errorf("something was written:\n%s\n%s", before, after)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestOlderKeyMissing: what does not need the older key works, what does says why.
func TestOlderKeyMissing(t *testing.T) {
	v, _ := testVault(t)
	first := initialised(t, v, Source{})
	var w Wrapped
	must(t, v.Use(t.Context(), func(r *Keyring) (err error) { _, w, err = r.NewDataKey(testOwner); return err }))
	if _, err := v.Advance(t.Context(), Source{}); err != nil {
		t.Fatal(err)
	}
	must(t, os.Remove(filepath.Join(v.dir, first.String()+".key")))
	err := v.Use(t.Context(), func(r *Keyring) error {
		if _, _, err := r.NewDataKey(testOwner); err != nil {
			t.Error(err)
		}
		_, err := r.Unwrap(testOwner, w)
		return err
	})
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "is gone") || !strings.Contains(err.Error(), first.String()) {
		t.Error(err)
	}
	list, err := v.Status(t.Context())
	if err != nil || len(list) != 2 || list[0].Problem == "" || list[1].Problem != "" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestSystemdCredential(t *testing.T) {
	v, env := testVault(t)
	source, err := ParseSource("systemd:cofferdam-key", nil)
	must(t, err)
	if _, err := v.Init(t.Context(), source); fault.KindOf(err) != fault.Unavailable || !strings.Contains(fault.HintOf(err), "LoadCredentialEncrypted") {
		t.Errorf("no directory: %v", err)
	}
	env["CREDENTIALS_DIRECTORY"] = t.TempDir()
	if _, err := v.Init(t.Context(), source); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("no credential: %v", err)
	}
	key := NewKey()
	file := filepath.Join(env["CREDENTIALS_DIRECTORY"], "cofferdam-key")
	must(t, os.WriteFile(file, key.Encode(), 0o400))
	if id := initialised(t, v, source); id != key.ID() {
		t.Error(id)
	}
	if id, err := current(t, v); err != nil || id != key.ID() {
		t.Errorf("%s, %v", id, err)
	}
	if strings.Contains(tree(t, v), strings.TrimSpace(string(key.Encode()))) {
		t.Error("the key was written into the vault")
	}
	// A new key under the old name would leave the old one nowhere.
	must(t, os.Chmod(file, 0o600))
	must(t, os.WriteFile(file, NewKey().Encode(), 0o600))
	if _, err := v.Advance(t.Context(), source); err == nil {
		t.Error("advanced to a source whose key is lost by it")
	}
	if _, err := current(t, v); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("another key: %v", err)
	}
	must(t, os.WriteFile(file, key.Encode(), 0o600))
	if id, err := v.Advance(t.Context(), Source{}); err != nil || id == key.ID() {
		t.Errorf("to a file: %s, %v", id, err)
	}
}

func TestKeyCommand(t *testing.T) {
	dir := t.TempDir()
	key := NewKey()
	must(t, os.WriteFile(filepath.Join(dir, "key"), key.Encode(), 0o600))
	for name, test := range map[string]struct {
		argv []string
		say  string
	}{
		"key":     {[]string{"/bin/cat", filepath.Join(dir, "key")}, ""},
		"fails":   {[]string{"/bin/sh", "-c", "cat " + filepath.Join(dir, "key") + "; exit 3"}, "exit status 3"},
		"absent":  {[]string{"/nowhere/program"}, "did not hand over"},
		"nothing": {[]string{"/bin/true"}, "no key"},
		"flood":   {[]string{"/bin/sh", "-c", "head -c 1000000 /dev/zero"}, "too long"},
		"text":    {[]string{"/bin/echo", "please log in first"}, "no key"},
	} {
		v, _ := testVault(t)
		id, err := v.Init(t.Context(), Source{Command: test.argv})
		if test.say == "" && (err != nil || id != key.ID()) || test.say != "" && (err == nil || !strings.Contains(err.Error(), test.say)) {
			t.Errorf("%s: %s, %v", name, id, err)
		}
		if err != nil && strings.Contains(err.Error(), strings.TrimSpace(string(key.Encode()))) {
			t.Errorf("%s: the error holds the key", name)
		}
	}
	started := time.Now()
	ctx := t.Context()
	_, err := readCommand(ctx, []string{"/bin/sh", "-c", "sleep 0.2; exit 1"})
	if err == nil || time.Since(started) > 5*time.Second {
		t.Error(err)
	}
}

func TestParseSource(t *testing.T) {
	for _, test := range []struct {
		text string
		args []string
		want string // empty: refused
	}{
		{"", nil, "none"}, {"file", nil, "none"}, {"systemd:key", nil, "systemd credential key"}, {"command:/bin/pass", []string{"show", "x"}, "command /bin/pass show x"},
		{"file", []string{"x"}, ""}, {"systemd:", nil, ""}, {"systemd:../key", nil, ""}, {"systemd:a/b", nil, ""}, {"systemd:.x", nil, ""}, {"systemd:key", []string{"x"}, ""},
		{"command:", nil, ""}, {"command:pass", nil, ""}, {"command:/bin/../bin/pass", nil, ""}, {"vault:x", nil, ""}, {"file:/tmp/key", nil, ""},
	} {
		s, err := ParseSource(test.text, test.args)
		if (err == nil) != (test.want != "") || err == nil && s.String() != test.want {
			t.Errorf("%q %q: %v, %v", test.text, test.args, s, err)
		}
	}
}

// TestUseKeepsFromPruning: a key that somebody is sealing under is not pruned before the record is there.
func TestUseKeepsFromPruning(t *testing.T) {
	v, _ := testVault(t)
	initialised(t, v, Source{})
	pruned := make(chan struct{})
	must(t, v.Use(t.Context(), func(r *Keyring) error {
		go func() {
			defer close(pruned)
			if _, err := v.Prune(t.Context(), func() (map[KeyID]int, error) { return nil, nil }); err != nil {
				t.Error(err)
			}
		}()
		select {
		case <-pruned:
			t.Error("pruned meanwhile")
		case <-time.After(50 * time.Millisecond):
		}
		_, _, err := r.NewDataKey(testOwner)
		return err
	}))
	<-pruned
}
