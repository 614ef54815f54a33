package web

import (
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type workspaceOperations interface {
	Workspaces(ctx context.Context, a control.Actor, p control.Page) (api.Page[api.Workspace], error)
	CreateWorkspace(ctx context.Context, a control.Actor, in api.NewWorkspace) (api.Workspace, error)
	DeleteWorkspace(ctx context.Context, a control.Actor, id string) error
}

type workspacesData struct {
	api.Page[api.Workspace]
	Form *form
}

func (p *Pages) workspaces(v *visit) error { return p.showWorkspaces(v, prefilled()) }

func (p *Pages) showWorkspaces(v *visit, f *form) error {
	page, err := v.ops.Workspaces(v.r.Context(), v.actor, v.pageOf(50))
	if err != nil {
		return err
	}
	return v.showForm("workspaces", "Workspaces", "workspaces", f, workspacesData{page, f})
}

func (p *Pages) newWorkspace(v *visit) error {
	f := newForm(v.r.PostForm)
	if f.need("name") {
		_, err := v.ops.CreateWorkspace(v.r.Context(), v.actor, api.NewWorkspace{Name: f.text("name"), Agent: f.text("agent")})
		if err == nil {
			return v.to("/workspaces", "workspace-made")
		}
		if err := f.take(err); err != nil {
			return err
		}
	}
	return p.showWorkspaces(v, f)
}

func (p *Pages) deleteWorkspace(v *visit) error {
	if err := v.ops.DeleteWorkspace(v.r.Context(), v.actor, v.r.PathValue("id")); err != nil {
		return err
	}
	return v.to("/workspaces", "workspace-deleted")
}
