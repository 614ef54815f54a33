package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
)

// tenantDir returns the directory of what a tenant keeps in files. The identifier comes from the store; it is read strictly all the same, since what got
// past would be a path of somebody's choosing.
func (s *Service) tenantDir(tenant string) (string, error) {
	fit := tenant != "" && len(tenant) <= 64 && strings.Trim(tenant, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && tenant[0] != '-'
	if !fit || s.State == "" {
		return "", fault.New(fault.Internal, "the tenant's identifier cannot name a directory")
	}
	return filepath.Join(s.State, "tenants", tenant), nil
}

// safe is where one tenant's credentials are kept, and the keys that they are sealed under.
type safe struct {
	store *credential.Store
	vault *seal.Vault
	dir   string
}

func (s *Service) safe(tenant string) (safe, error) {
	dir, err := s.tenantDir(tenant)
	if err != nil {
		return safe{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return safe{}, fault.New(fault.Unavailable, "the credentials cannot be reached").Because(err)
	}
	store, err := credential.OpenStore(filepath.Join(dir, "credentials"))
	if err != nil {
		return safe{}, err
	}
	return safe{store: store, vault: seal.OpenVault(filepath.Join(dir, "seal"), os.Getenv), dir: dir}, nil
}

// withKeys calls f with the keys that credentials are sealed under. Where there are neither keys nor credentials it makes the first key.
func (v safe) withKeys(ctx context.Context, f func(*seal.Keyring) error) error {
	ready, err := v.vault.Initialised()
	if err != nil {
		return err
	}
	if !ready {
		names, err := v.store.Names()
		if err != nil {
			return err
		}
		if len(names) > 0 { // a new key would hide the loss
			return fault.New(fault.Unavailable, "there are %d credentials, and the key that they are sealed under is gone", len(names)).
				WithHint("an operator has to bring the tenant's directory seal/ back from a copy")
		}
		if _, err := v.vault.Init(ctx, seal.Source{}); err != nil && fault.KindOf(err) != fault.Conflict { // somebody else was quicker
			return err
		}
	}
	return v.vault.Use(ctx, f)
}

// missingCredentials lists those of some names under which the tenant keeps nothing.
func (s *Service) missingCredentials(ctx context.Context, tenant string, names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	dir, err := s.tenantDir(tenant)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "credentials")); errors.Is(err, os.ErrNotExist) {
		return names, nil
	}
	v, err := s.safe(tenant)
	if err != nil {
		return nil, err
	}
	there, err := v.store.Names()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(there, credential.Name(n)) }), ctx.Err()
}
