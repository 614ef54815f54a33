package web

import (
	"context"
	"io"
	"strconv"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type sandboxOperations interface {
	Sandboxes(ctx context.Context, a control.Actor, agent string, live bool, p control.Page) (api.Page[api.Sandbox], error)
	Sandbox(ctx context.Context, a control.Actor, id string) (api.Sandbox, error)
	CreateSandbox(ctx context.Context, a control.Actor, in api.NewSandbox) (api.Sandbox, error)
	StopSandbox(ctx context.Context, a control.Actor, id, reason string) (api.Sandbox, error)
	ExtendSandbox(ctx context.Context, a control.Actor, id string, in api.Extend) (api.Sandbox, error)
	PauseSandbox(ctx context.Context, a control.Actor, id string) (api.Sandbox, error)
	ResumeSandbox(ctx context.Context, a control.Actor, id string) (api.Sandbox, error)
	Output(ctx context.Context, a control.Actor, id string, offset int64, most int) (data []byte, next, skipped int64, live bool, err error)
	Runs(ctx context.Context, a control.Actor, sandbox string, p control.Page) (api.Page[api.Run], error)
	Trace(ctx context.Context, a control.Actor, id string) (api.Trace, error)
	Files(ctx context.Context, a control.Actor, id, path string) ([]api.File, bool, error)
	ReadFile(ctx context.Context, a control.Actor, id, path string, tar bool) (io.ReadCloser, error)
	WriteFile(ctx context.Context, a control.Actor, id, path string, mode string, tar bool, content io.Reader) error
}

type sandboxesData struct {
	api.Page[api.Sandbox]
	Live bool
}

func (p *Pages) sandboxes(v *visit) error {
	live := v.r.URL.Query().Get("show") != "all"
	page, err := v.ops.Sandboxes(v.r.Context(), v.actor, "", live, v.pageOf(50))
	if err != nil {
		return err
	}
	d := sandboxesData{page, live}
	if v.htmx() {
		return v.fragment("sandboxes", "live", d)
	}
	return v.show("sandboxes", "Sandboxes", "sandboxes", d)
}

type sandboxForm struct {
	Form       *form
	Agents     []api.Agent // the first ones, as suggestions
	Workspaces []api.Workspace
}

func (p *Pages) newSandboxPage(v *visit) error {
	f := prefilled("agent", v.r.URL.Query().Get("agent"), "hours", "24")
	return p.showSandboxForm(v, f)
}

func (p *Pages) showSandboxForm(v *visit, f *form) error {
	d := sandboxForm{Form: f}
	agents, err := v.ops.Agents(v.r.Context(), v.actor, control.Page{Limit: 100})
	if err != nil {
		return err
	}
	workspaces, err := v.ops.Workspaces(v.r.Context(), v.actor, control.Page{Limit: 200})
	if err != nil {
		return err
	}
	d.Agents, d.Workspaces = agents.Items, workspaces.Items
	return v.showForm("sandbox-form", "New sandbox", "sandboxes", f, d)
}

func (p *Pages) newSandbox(v *visit) error {
	f := newForm(v.r.PostForm)
	in := api.NewSandbox{Agent: f.text("agent"), Name: f.text("title"), Isolation: f.text("isolation"), Workspace: f.text("workspace"), Hold: f.Has("hold", "yes"), TTY: f.Has("tty", "yes")}
	f.need("agent")
	var err error
	if !in.Hold {
		if in.Command, err = splitCommand(f.Value("command")); err != nil {
			f.wrong("command", sentence(err.Error()))
		}
	}
	if in.Environment, err = readVariables(f.block("environment")); err != nil {
		f.wrong("environment", sentence(err.Error()))
	}
	if f.text("hours") != "" {
		if in.Seconds, err = seconds(f.text("hours")); err != nil {
			f.wrong("hours", sentence(err.Error()))
		}
	}
	if f.Bad() {
		return p.showSandboxForm(v, f)
	}
	sandbox, err := v.ops.CreateSandbox(v.r.Context(), v.actor, in)
	if err != nil {
		if err := f.take(err); err != nil {
			return err
		}
		return p.showSandboxForm(v, f)
	}
	if in.Hold { // what it waits for is typed there
		return v.to(localURL("sandboxes", sandbox.ID, "terminal"), "")
	}
	return v.to(localURL("sandboxes", sandbox.ID), "")
}

// seconds reads a number of hours, as a form gives it.
func seconds(hours string) (int64, error) {
	h, err := strconv.ParseFloat(hours, 64)
	if err != nil || !(h > 0 && h <= 720) { // written so that it also refuses what is not a number
		return 0, errHours
	}
	return int64(h * float64(time.Hour/time.Second)), nil
}

// sandboxData is what every page of a sandbox shows.
type sandboxData struct {
	Sandbox api.Sandbox
	Tab     string
	Output  string
	Next    int64
	Skipped int64
	Live    bool
	Files   *filesData
	Runs    api.Page[api.Run]
	Trace   *traceData
	Extend  *form
}

// load gets the sandbox of the address.
func (v *visit) load(tab string) (*sandboxData, error) {
	s, err := v.ops.Sandbox(v.r.Context(), v.actor, v.r.PathValue("id"))
	return &sandboxData{Sandbox: s, Tab: tab, Extend: prefilled("hours", "24")}, err
}

// titleOf is how a sandbox is called on top of its pages.
func titleOf(s api.Sandbox) string {
	if s.Name != "" {
		return plain(s.Name)
	}
	return "Sandbox " + s.ID
}

func (v *visit) showSandbox(d *sandboxData) error {
	return v.show("sandbox", titleOf(d.Sandbox), "sandboxes", d)
}

func (p *Pages) sandbox(v *visit) error {
	d, err := v.load("output")
	if err != nil {
		return err
	}
	if v.htmx() {
		return v.fragment("sandbox", "live", d)
	}
	// The last part is enough to begin with; the script asks for what follows.
	chunk, err := v.readOutput(d.Sandbox.ID, 0, 256<<10)
	if err != nil {
		return err
	}
	d.Output, d.Next, d.Skipped, d.Live = chunk.Text, chunk.Next, chunk.Skipped, chunk.Live
	return v.showSandbox(d)
}

func (p *Pages) terminal(v *visit) error {
	d, err := v.load("terminal")
	if err != nil {
		return err
	}
	return v.showSandbox(d)
}

func (p *Pages) runs(v *visit) error {
	d, err := v.load("runs")
	if err != nil {
		return err
	}
	if d.Runs, err = v.ops.Runs(v.r.Context(), v.actor, d.Sandbox.ID, v.pageOf(50)); err != nil {
		return err
	}
	return v.showSandbox(d)
}

func (p *Pages) stopSandbox(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := v.ops.StopSandbox(v.r.Context(), v.actor, id, "stopped in the pages"); err != nil {
		return err
	}
	return v.to(localURL("sandboxes", id), "sandbox-stopped")
}

func (p *Pages) pauseSandbox(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := v.ops.PauseSandbox(v.r.Context(), v.actor, id); err != nil {
		return err
	}
	return v.to(localURL("sandboxes", id), "sandbox-paused")
}

func (p *Pages) resumeSandbox(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := v.ops.ResumeSandbox(v.r.Context(), v.actor, id); err != nil {
		return err
	}
	return v.to(localURL("sandboxes", id), "sandbox-resumed")
}

func (p *Pages) extendSandbox(v *visit) error {
	id := v.r.PathValue("id")
	f := newForm(v.r.PostForm)
	s, err := seconds(f.text("hours"))
	if err != nil {
		return errHours
	}
	if _, err := v.ops.ExtendSandbox(v.r.Context(), v.actor, id, api.Extend{Seconds: s}); err != nil {
		return err
	}
	return v.to(localURL("sandboxes", id), "sandbox-extended")
}
