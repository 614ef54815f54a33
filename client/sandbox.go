package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
)

// Sandboxes lists sandboxes, newest first, of one agent or all, only those that live or all.
func (c *Client) Sandboxes(ctx context.Context, agent string, live bool, p Page) (api.Page[api.Sandbox], error) {
	q := p.values()
	set(q, "agent", agent)
	if live {
		set(q, "live", "true")
	}
	return get[api.Page[api.Sandbox]](ctx, c, "/sandboxes", q)
}

// Sandbox returns one sandbox, with what it has used.
func (c *Client) Sandbox(ctx context.Context, id string) (api.Sandbox, error) {
	return get[api.Sandbox](ctx, c, at("sandboxes", id), nil)
}

// CreateSandbox makes a sandbox and returns when it runs.
func (c *Client) CreateSandbox(ctx context.Context, in api.NewSandbox) (api.Sandbox, error) {
	return post[api.Sandbox](ctx, c, "/sandboxes", 0, in)
}

// StopSandbox ends a sandbox and returns when it was told so.
func (c *Client) StopSandbox(ctx context.Context, id, reason string) (api.Sandbox, error) {
	return post[api.Sandbox](ctx, c, at("sandboxes", id, "stop"), 0, api.Stop{Reason: reason})
}

// PauseSandbox stops every process of a sandbox and returns when none runs any more.
func (c *Client) PauseSandbox(ctx context.Context, id string) (api.Sandbox, error) {
	return post[api.Sandbox](ctx, c, at("sandboxes", id, "pause"), 0, nil)
}

// ResumeSandbox lets the processes of a paused sandbox go on.
func (c *Client) ResumeSandbox(ctx context.Context, id string) (api.Sandbox, error) {
	return post[api.Sandbox](ctx, c, at("sandboxes", id, "resume"), 0, nil)
}

// ExtendSandbox sets when a sandbox ends, in seconds from now.
func (c *Client) ExtendSandbox(ctx context.Context, id string, seconds int64) (api.Sandbox, error) {
	return post[api.Sandbox](ctx, c, at("sandboxes", id, "extend"), 0, api.Extend{Seconds: seconds})
}

// ExecWait runs one more command as one request and returns what it came to.
func (c *Client) ExecWait(ctx context.Context, id string, in api.Exec) (api.ExecResult, error) {
	return post[api.ExecResult](ctx, c, at("sandboxes", id, "exec"), 0, in)
}

// Runs lists the commands that were executed, in one sandbox or all.
func (c *Client) Runs(ctx context.Context, sandbox string, p Page) (api.Page[api.Run], error) {
	q := p.values()
	set(q, "sandbox", sandbox)
	return get[api.Page[api.Run]](ctx, c, "/runs", q)
}

// Trace returns a sandbox's crossings in time.
func (c *Client) Trace(ctx context.Context, id string) (api.Trace, error) {
	return get[api.Trace](ctx, c, at("sandboxes", id, "trace"), nil)
}

// Files lists a directory inside a running sandbox.
func (c *Client) Files(ctx context.Context, id, path string) (api.Files, error) {
	return get[api.Files](ctx, c, at("sandboxes", id, "files"), url.Values{"path": {path}})
}

// Content is the form in which a file goes over the wire.
type Content uint8

// The forms.
const (
	Plain Content = iota // a file's bytes
	Tar                  // a directory as a tar stream
)

func (f Content) values(path string) url.Values {
	v := url.Values{"path": {path}}
	if f == Tar {
		v.Set("tar", strconv.FormatBool(true))
	}
	return v
}

// ReadFile reads a file inside a running sandbox, or a directory. The caller closes it.
func (c *Client) ReadFile(ctx context.Context, id, path string, form Content) (io.ReadCloser, error) {
	answer, err := c.send(ctx, request{method: http.MethodGet, path: at("sandboxes", id, "files", "content"), query: form.values(path)}, "")
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

// WriteFile writes a file inside a running sandbox, or unpacks a tar stream below a directory. Mode is in octal, the server's usual if empty.
func (c *Client) WriteFile(ctx context.Context, id, path, mode string, form Content, content io.Reader) error {
	q := form.values(path)
	set(q, "mode", mode)
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	answer, err := c.send(ctx, request{method: http.MethodPut, path: at("sandboxes", id, "files", "content"), query: q, content: content, header: header}, "")
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// Workspaces lists folders that outlive sandboxes.
func (c *Client) Workspaces(ctx context.Context, p Page) (api.Page[api.Workspace], error) {
	return get[api.Page[api.Workspace]](ctx, c, "/workspaces", p.values())
}

// Workspace returns one folder, by identifier or name.
func (c *Client) Workspace(ctx context.Context, id string) (api.Workspace, error) {
	return get[api.Workspace](ctx, c, at("workspaces", id), nil)
}

// CreateWorkspace makes an empty folder.
func (c *Client) CreateWorkspace(ctx context.Context, in api.NewWorkspace) (api.Workspace, error) {
	return post[api.Workspace](ctx, c, "/workspaces", 0, in)
}

// DeleteWorkspace removes a folder that no sandbox has.
func (c *Client) DeleteWorkspace(ctx context.Context, id string) error {
	return c.remove(ctx, at("workspaces", id))
}
