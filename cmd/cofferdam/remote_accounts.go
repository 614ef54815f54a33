package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// account is a server that a person logged in to.
type account struct {
	URL     string `json:"url"`
	TokenID string `json:"token_id,omitempty"` // where login made the token, to revoke it by
	User    string `json:"user,omitempty"`
	Tenant  string `json:"tenant,omitempty"`
	Usual   string `json:"agent,omitempty"` // that run takes if nobody names another
	CA      string `json:"ca,omitempty"`    // PEM of the authorities that are trusted for it, instead of the machine's
	token   secret.Bytes
}

// accounts are all servers that a person logged in to, as stored in servers.json.
type accounts struct {
	Current string
	Servers []account
}

// storedAccounts is the form on disk: the tokens are in clear there, in a file that only its owner can read, as ssh keeps its keys.
type storedAccounts struct {
	Current string          `json:"current,omitempty"`
	Servers []storedAccount `json:"servers"`
}

type storedAccount struct {
	account
	Token string `json:"token"`
}

// maxAccounts bounds servers.json in bytes.
const maxAccounts = 1 << 20

func (a *app) accountsFile() string { return filepath.Join(a.settings, "servers.json") }

// loadAccounts reads servers.json. There being none is no error.
func (a *app) loadAccounts() (accounts, error) {
	var all accounts
	if a.settings == "" {
		return all, nil
	}
	f, err := os.Open(a.accountsFile())
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return all, fault.New(fault.Unavailable, "cannot read %s", a.accountsFile()).Because(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode().Perm()&0o077 != 0 {
		return all, fault.New(fault.Denied, "others can read the tokens in %s", a.accountsFile()).WithHint("type: chmod go-rwx %s; and replace the tokens if others use this machine", a.accountsFile()).Because(err)
	}
	var stored storedAccounts
	d := json.NewDecoder(io.LimitReader(f, maxAccounts))
	d.DisallowUnknownFields()
	if err := d.Decode(&stored); err != nil {
		return all, fault.New(fault.Invalid, "%s is damaged", a.accountsFile()).WithHint("remove it, and log in again").Because(err)
	}
	all.Current = stored.Current
	for _, s := range stored.Servers {
		s.account.token = secret.New([]byte(s.Token))
		all.Servers = append(all.Servers, s.account)
	}
	return all, nil
}

// saveAccounts replaces servers.json at a stroke.
func (a *app) saveAccounts(all accounts) error {
	if a.settings == "" {
		return fault.New(fault.Invalid, "there is no place for settings: no home directory is known").WithHint("set HOME, or XDG_CONFIG_HOME to a directory of your own")
	}
	stored := storedAccounts{Current: all.Current, Servers: []storedAccount{}}
	for _, one := range all.Servers {
		stored.Servers = append(stored.Servers, storedAccount{account: one, Token: string(one.token.Reveal())})
	}
	data, err := json.MarshalIndent(stored, "", "  ")
	if err != nil {
		return fmt.Errorf("encode servers: %w", err)
	}
	if err := writePrivate(a.accountsFile(), append(data, '\n')); err != nil {
		return fault.New(fault.Unavailable, "cannot write %s", a.accountsFile()).WithHint("see that you may write there, and that the disk is not full").Because(err)
	}
	return nil
}

// writePrivate replaces a file that only its owner may read, at a stroke, and makes its directory.
func writePrivate(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// find returns the account at a server.
func (all *accounts) find(url string) (account, bool) {
	i := slices.IndexFunc(all.Servers, func(one account) bool { return one.URL == url })
	if i < 0 {
		return account{}, false
	}
	return all.Servers[i], true
}

// put adds an account, or replaces the one at the same server.
func (all *accounts) put(one account) {
	if i := slices.IndexFunc(all.Servers, func(other account) bool { return other.URL == one.URL }); i >= 0 {
		all.Servers[i] = one
		return
	}
	all.Servers = append(all.Servers, one)
}

// forget removes an account. If it was the current one there is none then: which other is meant is the person's to say.
func (all *accounts) forget(url string) {
	all.Servers = slices.DeleteFunc(all.Servers, func(one account) bool { return one.URL == url })
	if all.Current == url {
		all.Current = ""
	}
}
