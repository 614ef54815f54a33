package api

import "time"

// SandboxState is where a sandbox is in its life.
type SandboxState string

// The states of a sandbox.
const (
	Starting SandboxState = "starting" // being made
	Running  SandboxState = "running"
	Paused   SandboxState = "paused"   // every process of it is stopped, until it is resumed
	Stopping SandboxState = "stopping" // told to end
	Ended    SandboxState = "ended"    // gone; How says how
	Failed   SandboxState = "failed"   // never came to be; How says why
)

// Live says whether something of the sandbox may exist.
func (s SandboxState) Live() bool {
	return s == Starting || s == Running || s == Paused || s == Stopping
}

// Sandbox is a throw-away room for one piece of work.
type Sandbox struct {
	ID        string       `json:"id"` // also the run of its audit events
	Agent     string       `json:"agent"`
	AgentName string       `json:"agent_name"`
	Name      string       `json:"name,omitempty"`
	State     SandboxState `json:"state"`
	Command   []string     `json:"command,omitempty"` // main command; empty: it waits for others until it is stopped
	Isolation string       `json:"isolation"`
	Weaker    []string     `json:"weaker,omitempty"` // what is weaker than asked for
	Workspace string       `json:"workspace,omitempty"`
	CreatedBy string       `json:"created_by"`
	Created   time.Time    `json:"created"`
	Started   time.Time    `json:"started,omitzero"`
	Ended     time.Time    `json:"ended,omitzero"`
	Deadline  time.Time    `json:"deadline,omitzero"` // it is ended then, unless extended
	How       string       `json:"how,omitempty"`
	ExitCode  *int         `json:"exit_code,omitempty"`
	Erased    []string     `json:"erased,omitempty"` // checked to be gone
	Problems  []string     `json:"problems,omitempty"`
	Usage     Usage        `json:"usage"`
	Version   int64        `json:"version"`
}

// Usage is what a sandbox has used so far.
type Usage struct {
	Connections int64  `json:"connections"`
	Allowed     int64  `json:"allowed"`
	Denied      uint64 `json:"denied"`
	BytesIn     int64  `json:"bytes_in"`
	BytesOut    int64  `json:"bytes_out"`
}

// NewSandbox asks for a sandbox of an agent.
type NewSandbox struct {
	Agent       string            `json:"agent"`                          // identifier or name
	Name        string            `json:"name,omitempty" maxLength:"100"` // for people
	Command     []string          `json:"command,omitempty"`              // the agent's own if left out
	Hold        bool              `json:"hold,omitempty"`                 // no main command: it waits for others until it is stopped
	Environment map[string]string `json:"environment,omitempty"`          // over the agent's
	Isolation   string            `json:"isolation,omitempty"`            // may only be stronger than the agent's
	Workspace   string            `json:"workspace,omitempty"`            // identifier or name of a persistent one; else a fresh empty one
	TTY         bool              `json:"tty,omitempty"`                  // for the main command
	Seconds     int64             `json:"seconds,omitempty" minimum:"0" maximum:"2592000"`
}

// Exec asks for one more command in a running sandbox, over a WebSocket or as one request.
type Exec struct {
	Command     []string          `json:"command"`
	Dir         string            `json:"dir,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	Rows        uint16            `json:"rows,omitempty"`
	Cols        uint16            `json:"cols,omitempty"`
	Stdin       string            `json:"stdin,omitempty"` // for one request only
}

// ExecResult is what a command that ran as one request came to. Output is cut after 1 MiB each.
type ExecResult struct {
	ExitCode  int    `json:"exit_code"`
	Signal    int    `json:"signal,omitempty"`
	Error     string `json:"error,omitempty"` // why it could not be started
	Stdout    string `json:"stdout"`
	Stderr    string `json:"stderr"`
	Truncated bool   `json:"truncated,omitempty"`
	Run       string `json:"run"`
}

// Run is one command that a person or a program had executed in a sandbox.
type Run struct {
	ID       string    `json:"id"`
	Sandbox  string    `json:"sandbox"`
	Agent    string    `json:"agent"`
	Command  []string  `json:"command"`
	TTY      bool      `json:"tty,omitempty"`
	By       string    `json:"by"`
	State    string    `json:"state"` // running, ended, lost
	ExitCode *int      `json:"exit_code,omitempty"`
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended,omitzero"`
}

// Extend sets when a sandbox ends, counted from now.
type Extend struct {
	Seconds int64 `json:"seconds" minimum:"1" maximum:"2592000"`
}

// File is an entry of a directory inside a sandbox, as the sandbox itself tells.
type File struct {
	Name     string    `json:"name"`
	Type     string    `json:"type"` // file, dir, link, other
	Size     int64     `json:"size"`
	Mode     string    `json:"mode"`
	Modified time.Time `json:"modified"`
	Target   string    `json:"target,omitempty"` // of a link
}

// Workspace is a folder that outlives sandboxes.
type Workspace struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Agent    string    `json:"agent,omitempty"`   // only its sandboxes may use it; empty: any of the tenant
	Used     string    `json:"used_by,omitempty"` // the sandbox that has it now
	Size     int64     `json:"size"`              // bytes, as measured at the end of its last sandbox
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"last_used,omitzero"`
	Version  int64     `json:"version"`
}

// NewWorkspace asks for a persistent workspace.
type NewWorkspace struct {
	Name  string `json:"name" maxLength:"63"`
	Agent string `json:"agent,omitempty"`
}
