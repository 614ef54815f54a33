package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// identity is the one object of a store that says which store it is: its identifier is random, and kept in the state directory too. What lies in that directory
// means what it means to this store alone: to an empty or another one all of it would belong to nobody.
type identity struct{}

func identities() store.Collection[identity] { return store.Of[identity]("settings") }

const (
	identityName = "store-identity"
	// identityTime bounds the look at the store when the service is made.
	identityTime = 30 * time.Second
)

// knowStore makes sure that a state directory and a store belong together, and ties them to each other when both are new to that.
func knowStore(ctx context.Context, db *store.DB, state string) error {
	ctx, stop := context.WithTimeout(ctx, identityTime)
	defer stop()
	file := filepath.Join(state, "server", "store-id")
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Unavailable, "cannot read %s", file).Because(err)
	}
	known := strings.TrimSpace(string(data))
	o, err := identities().ByName(ctx, db, "", identityName)
	missing := fault.KindOf(err) == fault.NotFound
	switch {
	case err != nil && !missing:
		return fmt.Errorf("read the identity of the store: %w", err)
	case missing && known != "":
		used, err := holdsAnything(state)
		if err != nil {
			return err
		}
		if used {
			return fault.New(fault.Conflict, "the store is empty or not the one that the state directory %s was used with", state).
				WithHint("give the service the store that it had, or restore a copy of it; if another store is meant, remove %s", file)
		}
	case !missing && known != "" && known != o.ID:
		return fault.New(fault.Conflict, "the store is not the one that the state directory %s was used with", state).
			WithHint("give the service the store or the state directory that belong together; if this is meant, remove %s", file)
	case !missing && known == o.ID:
		return nil
	}
	if missing {
		if o, err = beginIdentity(ctx, db); err != nil {
			return err
		}
	}
	return writeIdentity(file, o.ID)
}

// beginIdentity gives a store its identity. Of several who do so at once one is first, and all get the same.
func beginIdentity(ctx context.Context, db *store.DB) (store.Object[identity], error) {
	o, err := identities().Insert(ctx, db, store.Object[identity]{Name: identityName})
	if fault.KindOf(err) == fault.Conflict {
		o, err = identities().ByName(ctx, db, "", identityName)
	}
	if err != nil {
		return o, fmt.Errorf("give the store an identity: %w", err)
	}
	return o, nil
}

// writeIdentity writes the file whole or not at all: half of an identity would be another one.
func writeIdentity(file, id string) error {
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = os.WriteFile(file+".new", []byte(id+"\n"), 0o600)
	}
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		return fault.New(fault.Unavailable, "cannot write %s", file).Because(err)
	}
	return nil
}

// holdsAnything says whether a state directory has records or workspaces of sandboxes.
func holdsAnything(state string) (bool, error) {
	for _, name := range []string{"workspaces", "runs"} {
		entries, err := os.ReadDir(filepath.Join(state, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("look into the state directory: %w", err)
		}
		if len(entries) > 0 {
			return true, nil
		}
	}
	return false, nil
}
