package main

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
)

func newSealCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Manage the keys that credentials are sealed under",
		Long: `Credentials lie on the disk encrypted with AES-256-GCM: each under a data key of its own, and that under the key which is managed here.
It comes from a file (the default), from a systemd credential, or from a command.

  cofferdam seal status     which keys there are, and what is sealed under them
  cofferdam seal init       make the first key; "credential add" does it by itself
  cofferdam seal rotate     make a new key and put everything under it, while sandboxes run
  cofferdam seal prune      erase keys that nothing is sealed under any more`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSealStatusCommand(a), newSealInitCommand(a), newSealRotateCommand(a), newSealPruneCommand(a))
	return cmd
}

// sealedKey is one key and what is sealed under it.
type sealedKey struct {
	seal.KeyStatus
	Credentials int `json:"credentials"`
}

func newSealStatusCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show keys, and how many credentials are sealed under each", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := a.credentials()
			if err != nil {
				return err
			}
			keys, err := a.vault().Status(cmd.Context())
			if err != nil {
				return err
			}
			used, err := store.KeysInUse(cmd.Context())
			if err != nil {
				return err
			}
			return a.showSeal(cmd, keys, used)
		},
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) showSeal(cmd *cobra.Command, keys []seal.KeyStatus, used map[seal.KeyID]int) error {
	list, missing := []sealedKey{}, 0
	for _, k := range keys {
		list = append(list, sealedKey{k, used[k.ID]})
		if k.Problem != "" && (used[k.ID] > 0 || k.Current) {
			missing++
		}
		delete(used, k.ID)
	}
	for id, n := range used {
		list = append(list, sealedKey{seal.KeyStatus{ID: id, Problem: "nothing is known of this key"}, n})
		missing++
	}
	err := show(a, cmd, list, nil, a.printSeal)
	if err == nil && missing > 0 {
		return fault.New(fault.Unavailable, "%d keys that are needed cannot be had", missing).WithHint("bring them back from where you keep copies; nothing was changed")
	}
	return err
}

func (a *app) printSeal(list []sealedKey) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: there is no key yet; the first credential makes one, or: cofferdam seal init")
		return err
	}
	w := newTable(a.stdout)
	fmt.Fprintln(w, "KEY\tSTATE\tCREDENTIALS\tMADE\tSOURCE")
	for _, k := range list {
		state, made := "older", "-"
		if k.Current {
			state = "current"
		}
		if k.Problem != "" {
			state = "MISSING: " + inert(k.Problem, 200)
		}
		if !k.Created.IsZero() {
			made = since(k.Created)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.ID, state, strconv.Itoa(k.Credentials), made, inert(k.Source, 80))
	}
	return w.Flush()
}

// sourceFlag is --source, shared by init and rotate.
func sourceFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("source", "file", "where the key comes from: file, systemd:NAME, or command:/path/to/program with arguments after --")
}

func newSealInitCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init [--source SOURCE] [-- ARGUMENTS]",
		Short: "Make the first key, or say where it comes from",
		Example: `  cofferdam seal init
  cofferdam seal init --source systemd:cofferdam-key
  cofferdam seal init --source command:/usr/bin/pass -- show cofferdam`,
	}
	source := sourceFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := seal.ParseSource(*source, args)
		if err != nil {
			return err
		}
		store, err := a.credentials()
		if err != nil {
			return err
		}
		vault := a.vault()
		if ready, err := vault.Initialised(); err != nil {
			return err
		} else if !ready && *source == "file" { // a key from elsewhere may be the lost one
			if err := refuseOrphans(store); err != nil {
				return err
			}
		}
		id, err := vault.Init(cmd.Context(), s)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.stderr, "cofferdam: credentials are sealed under the key %s from now on; what says so is in %s\n  keep a copy apart from copies of the credentials: without the key nothing opens\n",
			id, filepath.Join(a.state, "seal"))
		return err
	}
	return cmd
}

func newSealRotateCommand(a *app) *cobra.Command {
	var finish bool
	cmd := &cobra.Command{
		Use:   "rotate [--source SOURCE] [-- ARGUMENTS]",
		Short: "Make a new key and put everything under it, while sandboxes run",
		Long: `Make a new key (or take it from --source) and put the data keys of all credentials under it, one after the other. Sandboxes that run do not notice.
Older keys stay until "cofferdam seal prune". If it is interrupted, nothing is lost; --finish goes on without making another key.`,
	}
	source := sourceFlag(cmd)
	cmd.Flags().BoolVar(&finish, "finish", false, "make no new key, only put under the current one what is not yet")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := seal.ParseSource(*source, args)
		if err != nil {
			return err
		}
		store, err := a.credentials()
		if err != nil {
			return err
		}
		vault := a.vault()
		if err := a.recordCredential(cmd.Context(), "", "seal rotate"); err != nil {
			return err
		}
		if !finish {
			if _, err := vault.Advance(cmd.Context(), s); err != nil {
				return err
			}
		}
		return vault.Use(cmd.Context(), func(ring *seal.Keyring) error { return a.rewrap(cmd, store, ring) })
	}
	return cmd
}

func (a *app) rewrap(cmd *cobra.Command, store *credential.Store, ring *seal.Keyring) error {
	done, err := store.Rewrap(cmd.Context(), ring)
	fmt.Fprintf(a.stderr, "cofferdam: the key is %s; %d credentials were put under it\n", ring.Current(), done)
	if err != nil {
		return fault.New(fault.KindOf(err), "some credentials are still under an older key").Because(err).WithHint("mend that, then type: cofferdam seal rotate --finish")
	}
	_, err = fmt.Fprintln(a.stderr, "  erase older keys with: cofferdam seal prune")
	return err
}

func newSealPruneCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "prune", Short: "Erase keys that nothing is sealed under any more", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := a.credentials()
			if err != nil {
				return err
			}
			if err := a.recordCredential(cmd.Context(), "", "seal prune"); err != nil {
				return err
			}
			gone, err := a.vault().Prune(cmd.Context(), func() (map[seal.KeyID]int, error) { return store.KeysInUse(cmd.Context()) })
			for _, id := range gone {
				fmt.Fprintln(a.stderr, "cofferdam: forgot the key", id)
			}
			if err == nil && len(gone) == 0 {
				fmt.Fprintln(a.stderr, "cofferdam: every key is in use")
			}
			return err
		},
	}
}
