package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/store"
)

// WorkspaceData is a folder that outlives sandboxes. The object's parent is the agent that alone may use it, if there is one.
type WorkspaceData struct {
	Used     string    `json:"used,omitempty"` // the sandbox that has it
	Size     int64     `json:"size"`
	LastUsed time.Time `json:"last_used,omitzero"`
}

func workspaces() store.Collection[WorkspaceData] { return store.Of[WorkspaceData]("workspace") }

// maxWorkspaces bounds the workspaces of a tenant.
const maxWorkspaces = 10_000

// isID matches the store's identifiers: nothing else becomes part of a path.
var isID = regexp.MustCompile(`^[a-z0-9]{8,40}$`)

// workDir is the host's directory of a sandbox's workspace: one of its own, or a persistent one. It is only made and given to the keeper: what lies in it is
// written by the sandbox, so nothing on this side follows a name in it.
func (s *Service) workDir(o store.Object[SandboxData]) string {
	if o.Data.Workspace != "" {
		return s.workspaceDir(o.Tenant, o.Data.Workspace)
	}
	return filepath.Join(s.State, "workspaces", ident.Run(o.ID).String())
}

// workspaceDir is the directory of a persistent workspace. Identifiers of tenants are longer than those of sandboxes, which lie beside them.
func (s *Service) workspaceDir(tenant, id string) string {
	if !isID.MatchString(tenant) || !isID.MatchString(id) {
		panic("control: an identifier that was not made here") // it would become a path
	}
	return filepath.Join(s.State, "workspaces", tenant, id)
}

// claimWorkspace gives a sandbox its persistent workspace, in the transaction in which the sandbox begins: of several one gets it.
func (s *Service) claimWorkspace(ctx context.Context, tx *store.DB, o store.Object[SandboxData]) error {
	if o.Data.Workspace == "" {
		return nil
	}
	w, err := workspaces().Get(ctx, tx, o.Tenant, o.Data.Workspace)
	if fault.KindOf(err) == fault.NotFound {
		return absent("workspace")
	}
	if err != nil {
		return err
	}
	if w.Parent != "" && w.Parent != o.Parent {
		return fault.New(fault.Denied, "this workspace belongs to another agent").WithHint("use one of this agent's, or of no agent's")
	}
	if w.Data.Used != "" {
		return fault.New(fault.Conflict, "sandbox %s has this workspace", w.Data.Used).WithHint("stop that sandbox first, or use another workspace")
	}
	w.Data.Used, w.Data.LastUsed = o.ID, s.now()
	_, err = workspaces().Update(ctx, tx, w)
	return err
}

// releaseWorkspace takes it back, in the transaction in which the sandbox ends.
func releaseWorkspace(ctx context.Context, tx *store.DB, o store.Object[SandboxData], now time.Time) error {
	if o.Data.Workspace == "" {
		return nil
	}
	w, err := workspaces().Get(ctx, tx, o.Tenant, o.Data.Workspace)
	if fault.KindOf(err) == fault.NotFound {
		return nil
	}
	if err != nil || w.Data.Used != o.ID {
		return err
	}
	w.Data.Used, w.Data.LastUsed = "", now
	_, err = workspaces().Update(ctx, tx, w)
	return err
}

// noteSize notes how large the persistent workspace of a sandbox is that has ended. It is of no consequence: what cannot be told in time stays as it was.
func (s *Service) noteSize(ctx context.Context, o store.Object[SandboxData]) {
	if o.Data.Workspace == "" {
		return
	}
	size := s.house.size(ctx, s.workDir(o), lastSizingTime)
	if size.partial {
		return
	}
	err := s.DB.Within(ctx, func(tx *store.DB) error {
		w, err := workspaces().Get(ctx, tx, o.Tenant, o.Data.Workspace)
		if fault.KindOf(err) == fault.NotFound || err == nil && w.Data.Size == size.bytes {
			return nil
		}
		if err != nil {
			return err
		}
		w.Data.Size = size.bytes
		_, err = workspaces().Update(ctx, tx, w)
		return err
	})
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("note the size of a workspace", "workspace", o.Data.Workspace, "error", err)
	}
}

func showWorkspace(o store.Object[WorkspaceData]) api.Workspace {
	return api.Workspace{
		ID: o.ID, Name: o.Name, Agent: o.Parent, Used: o.Data.Used, Size: o.Data.Size, Created: o.Created, LastUsed: o.Data.LastUsed, Version: o.Version,
	}
}

// Workspaces lists persistent workspaces by name.
func (s *Service) Workspaces(ctx context.Context, a Actor, p Page) (api.Page[api.Workspace], error) {
	var out api.Page[api.Workspace]
	if err := may(a, ReadSandboxes); err != nil {
		return out, err
	}
	f, err := p.filter()
	if err != nil {
		return out, err
	}
	f.ByName = true
	return pageOf(ctx, s.DB, workspaces(), a.Tenant, f, showWorkspace)
}

// Workspace returns one workspace, by identifier or name.
func (s *Service) Workspace(ctx context.Context, a Actor, id string) (api.Workspace, error) {
	if err := may(a, ReadSandboxes); err != nil {
		return api.Workspace{}, err
	}
	o, err := find(ctx, s.DB, workspaces(), a.Tenant, "workspace", id)
	if err != nil {
		return api.Workspace{}, err
	}
	return showWorkspace(o), nil
}

// CreateWorkspace makes an empty workspace.
func (s *Service) CreateWorkspace(ctx context.Context, a Actor, in api.NewWorkspace) (api.Workspace, error) {
	if err := may(a, WriteSandboxes); err != nil {
		return api.Workspace{}, err
	}
	name, err := ParseName(in.Name)
	if err != nil {
		return api.Workspace{}, err
	}
	o := store.Object[WorkspaceData]{ID: store.NewID(), Tenant: a.Tenant, Name: name}
	if in.Agent != "" {
		if o.Parent, err = s.agentID(ctx, a.Tenant, in.Agent); err != nil {
			return api.Workspace{}, err
		}
	}
	n, err := workspaces().Count(ctx, s.DB, a.Tenant, store.Filter{})
	if err != nil {
		return api.Workspace{}, err
	}
	if n >= maxWorkspaces {
		return api.Workspace{}, fault.New(fault.TooMany, "there are %d workspaces already", n).WithHint("delete one that nobody needs")
	}
	if err := freeName(ctx, s.DB, workspaces(), a.Tenant, "a workspace", name, ""); err != nil {
		return api.Workspace{}, err
	}
	// The directory comes first: a workspace that is in the store has one.
	dir := s.workspaceDir(a.Tenant, o.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return api.Workspace{}, fault.New(fault.Unavailable, "the workspace's folder cannot be made").Because(err)
	}
	e := audit.Event{Kind: audit.WorkspaceChanged, Agent: o.Parent, Detail: "workspace " + name + " is made"}
	err = s.change(ctx, a, e, func(tx *store.DB) ([]store.Event, error) {
		var err error
		o, err = workspaces().Insert(ctx, tx, o)
		return []store.Event{{Type: "workspace", Subject: o.ID, Agent: o.Parent}}, err
	})
	if err != nil {
		return api.Workspace{}, errors.Join(err, os.Remove(dir))
	}
	return showWorkspace(o), nil
}

// DeleteWorkspace removes a workspace that no sandbox has, with what is in it.
func (s *Service) DeleteWorkspace(ctx context.Context, a Actor, id string) error {
	if err := may(a, WriteSandboxes); err != nil {
		return err
	}
	o, err := find(ctx, s.DB, workspaces(), a.Tenant, "workspace", id)
	if err != nil {
		return err
	}
	if err := nobodyHas(o); err != nil {
		return err
	}
	e := audit.Event{Kind: audit.WorkspaceChanged, Agent: o.Parent, Detail: "workspace " + o.Name + " is removed"}
	err = s.change(ctx, a, e, func(tx *store.DB) ([]store.Event, error) {
		o, err := workspaces().Get(ctx, tx, a.Tenant, o.ID)
		if err == nil {
			err = nobodyHas(o)
		}
		if err != nil {
			return nil, err
		}
		// Its version is the one in which nobody had it: who claims it meanwhile makes another.
		err = workspaces().Delete(ctx, tx, a.Tenant, o.ID, o.Version)
		return []store.Event{{Type: "workspace", Subject: o.ID, Agent: o.Parent, State: "removed"}}, err
	})
	if err != nil {
		return err
	}
	if err := removeTree(s.workspaceDir(a.Tenant, o.ID)); err != nil {
		return fault.New(fault.Unavailable, "the workspace's folder could not be removed").WithHint("an operator finds the reason in the server's log, and removes it").Because(err)
	}
	return nil
}

func nobodyHas(o store.Object[WorkspaceData]) error {
	if o.Data.Used != "" {
		return fault.New(fault.Conflict, "sandbox %s has this workspace", o.Data.Used).WithHint("stop that sandbox first")
	}
	return nil
}

// lostName is the folder among the workspaces where those are put that belong to nothing. No tenant and no sandbox has such an identifier.
const lostName = ".lost"

// sweepWorkspaces removes what sandboxes that have ended left behind, and puts aside what belongs to nothing: this process was ended between a folder and its
// place in the store, or the store is an older copy. Nothing that a person kept is erased but by DeleteWorkspace.
func (s *Service) sweepWorkspaces(ctx context.Context) error {
	dir := filepath.Join(s.State, "workspaces")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list workspaces: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch _, err := ident.ParseRun(e.Name()); {
		case err == nil:
			err = s.sweepWorkspace(path, e.Name(), func() (fate, error) { return s.fateOfSandbox(ctx, e.Name()) })
			if err != nil {
				return err
			}
		case isID.MatchString(e.Name()):
			if err := s.sweepTenant(ctx, path, e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepTenant looks through the persistent workspaces of one tenant.
func (s *Service) sweepTenant(ctx context.Context, dir, tenant string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list workspaces: %w", err)
	}
	for _, e := range entries {
		err := s.sweepWorkspace(filepath.Join(dir, e.Name()), tenant+"-"+e.Name(), func() (fate, error) {
			_, err := workspaces().Get(ctx, s.DB, tenant, e.Name())
			if fault.KindOf(err) == fault.NotFound {
				return lost, nil
			}
			return stays, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// fate is what becomes of a folder among the workspaces.
type fate uint8

const (
	stays fate = iota
	lost       // nothing has it: it is put aside
	over       // its sandbox has ended, and it was to end with it
)

// fateOfSandbox tells what becomes of a folder that is a sandbox's own. A sandbox is in the store before its folder is made: one that is not there was there.
func (s *Service) fateOfSandbox(ctx context.Context, id string) (fate, error) {
	o, err := sandboxes().Get(ctx, s.DB, store.AnyTenant, id)
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return lost, nil
	case err != nil || alive(o):
		return stays, err
	}
	return over, nil
}

// sweepWorkspace does to a folder what is due, unless it is new: then it is being made.
func (s *Service) sweepWorkspace(dir, name string, tell func() (fate, error)) error {
	info, err := os.Lstat(dir)
	if err != nil || time.Since(info.ModTime()) < tombstoneAge {
		return nil // gone meanwhile, or new
	}
	due, err := tell()
	switch {
	case err != nil:
		return err
	case due == over:
		s.Log.Warn("the workspace of a sandbox that has ended is removed", "dir", dir)
		return removeTree(dir)
	case due == lost:
		return s.putAside(dir, name)
	}
	return nil
}

// putAside moves a folder that belongs to nothing to where an operator finds it, and nobody else.
func (s *Service) putAside(dir, name string) error {
	aside := filepath.Join(s.State, "workspaces", lostName)
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return fmt.Errorf("put a workspace aside: %w", err)
	}
	to := filepath.Join(aside, name)
	if _, err := os.Lstat(to); err == nil {
		to += "-" + store.NewID()
	}
	if err := os.Rename(dir, to); err != nil {
		return fmt.Errorf("put a workspace aside: %w", err)
	}
	s.Log.Warn("a workspace that belongs to nothing in the store is put aside; remove it if nobody misses it", "dir", dir, "to", to)
	return nil
}
