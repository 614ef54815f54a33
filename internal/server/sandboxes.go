package server

import (
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

type (
	sandboxList struct {
		Pages
		Agent string `query:"agent" maxLength:"100"`
		Live  bool   `query:"live" doc:"only those that are not over"`
	}
	runList struct {
		Pages
		Sandbox string `query:"sandbox" maxLength:"100"`
	}
)

var sandboxID = param{"id", "path", "string", "identifier of the sandbox"}

func (s *Server) sandboxOperations() []operation {
	return []operation{
		op("GET", "/sandboxes", "list-sandboxes", "Sandboxes, newest first", control.ReadSandboxes, func(ctx context.Context, c *call, in *sandboxList) (api.Page[api.Sandbox], error) {
			return listed(s.control.Sandboxes(ctx, c.actor, in.Agent, in.Live, in.page()))
		}),
		op("POST", "/sandboxes", "create-sandbox", "Make a sandbox; answers when it runs", control.WriteSandboxes, func(ctx context.Context, c *call, in *body[api.NewSandbox]) (api.Sandbox, error) {
			return s.control.CreateSandbox(ctx, c.actor, in.Body)
		}).making(),
		op("GET", "/sandboxes/{id}", "get-sandbox", "One sandbox, with what it has used", control.ReadSandboxes, func(ctx context.Context, c *call, in *ByID) (api.Sandbox, error) {
			return s.control.Sandbox(ctx, c.actor, in.ID)
		}),
		op("POST", "/sandboxes/{id}/stop", "stop-sandbox", "End a sandbox; answers when it was told so", control.WriteSandboxes,
			func(ctx context.Context, c *call, in *change[api.Stop]) (api.Sandbox, error) {
				return s.control.StopSandbox(ctx, c.actor, in.ID, in.Body.Reason)
			}),
		op("POST", "/sandboxes/{id}/pause", "pause-sandbox", "Stop every process of a sandbox for now; answers when none runs any more", control.WriteSandboxes,
			func(ctx context.Context, c *call, in *ByID) (api.Sandbox, error) {
				return s.control.PauseSandbox(ctx, c.actor, in.ID)
			}),
		op("POST", "/sandboxes/{id}/resume", "resume-sandbox", "Let the processes of a paused sandbox go on", control.WriteSandboxes,
			func(ctx context.Context, c *call, in *ByID) (api.Sandbox, error) {
				return s.control.ResumeSandbox(ctx, c.actor, in.ID)
			}),
		op("POST", "/sandboxes/{id}/extend", "extend-sandbox", "Set when a sandbox ends, counted from now", control.WriteSandboxes,
			func(ctx context.Context, c *call, in *change[api.Extend]) (api.Sandbox, error) {
				return s.control.ExtendSandbox(ctx, c.actor, in.ID, in.Body)
			}),
		op("POST", "/sandboxes/{id}/exec", "exec-once", "Run one more command and wait for its end", control.WriteSandboxes,
			func(ctx context.Context, c *call, in *change[api.Exec]) (api.ExecResult, error) {
				return s.control.ExecWait(ctx, c.actor, in.ID, in.Body)
			}),
		raw("GET", "/sandboxes/{id}/exec", "exec-stream", "Run one more command over a WebSocket: see ExecControl and ExecMessage", control.WriteSandboxes, s.execStream).with(sandboxID).and(control.ReadSandboxes),
		raw("GET", "/sandboxes/{id}/output", "get-output", "What the main command said; with follow, or Accept: text/event-stream, as server-sent events as it says more", control.ReadSandboxes, s.output).
			with(sandboxID, param{"offset", "query", "integer", "of the first byte"}, param{"limit", "query", "integer", "bytes at most; 1 MiB if left out"},
				param{"follow", "query", "boolean", "go on"}).media("", "application/octet-stream"),
		op("GET", "/sandboxes/{id}/trace", "get-trace", "The sandbox's crossings in time", control.ReadSandboxes, func(ctx context.Context, c *call, in *ByID) (api.Trace, error) {
			return s.control.Trace(ctx, c.actor, in.ID)
		}),
		op("GET", "/runs", "list-runs", "Commands that were executed, of one sandbox or all", control.ReadSandboxes, func(ctx context.Context, c *call, in *runList) (api.Page[api.Run], error) {
			return listed(s.control.Runs(ctx, c.actor, in.Sandbox, in.page()))
		}),
		op("GET", "/workspaces", "list-workspaces", "Folders that outlive sandboxes", control.ReadSandboxes, func(ctx context.Context, c *call, in *Pages) (api.Page[api.Workspace], error) {
			return listed(s.control.Workspaces(ctx, c.actor, in.page()))
		}),
		op("POST", "/workspaces", "create-workspace", "Make an empty folder", control.WriteSandboxes, func(ctx context.Context, c *call, in *body[api.NewWorkspace]) (api.Workspace, error) {
			return s.control.CreateWorkspace(ctx, c.actor, in.Body)
		}).making(),
		op("GET", "/workspaces/{id}", "get-workspace", "One folder, by identifier or name", control.ReadSandboxes, func(ctx context.Context, c *call, in *ByID) (api.Workspace, error) {
			return s.control.Workspace(ctx, c.actor, in.ID)
		}),
		act("DELETE", "/workspaces/{id}", "delete-workspace", "Remove a folder that no sandbox has", control.WriteSandboxes, func(ctx context.Context, c *call, in *ByID) error {
			return s.control.DeleteWorkspace(ctx, c.actor, in.ID)
		}),
	}
}
