// Package keeper (CONTROL) is what the service and the keeper of one sandbox say to each other. The keeper is a process of its own: the sandbox's
// gateway and the owner of its runner, confined, and independent of the service's life, so that a service that comes back finds its sandboxes again.
//
// It speaks HTTP over a Unix socket in a directory that only the service's user can enter. Everything that comes from a keeper counts as hostile to the
// service: it parses what a sandbox sent. Messages are bounded and decoded strictly.
package keeper

import (
	"time"

	"github.com/cofferdam/cofferdam/internal/ident"
)

// Spec is what a keeper is told to keep: one JSON document on its standard input.
type Spec struct {
	Run    ident.Run `json:"run"`
	Tenant string    `json:"tenant"`
	Agent  string    `json:"agent"`
	// Principal asked for the sandbox, for the record: "user:ID", "token:ID".
	Principal string `json:"principal"`
	// Policy is the document in force, in YAML.
	Policy string `json:"policy"`
	// Then are the documents that take its place.
	Then []Later `json:"then,omitempty"`
	// Isolation, if set, is a stronger level than the policy's.
	Isolation string `json:"isolation,omitempty"`
	// Secrets is the directory with the tenant's credentials/ and seal/; empty if there is none.
	Secrets string `json:"secrets,omitempty"`
	// Workspace is the folder to work on; none if nil.
	Workspace *Workspace `json:"workspace,omitempty"`
	Env       []string   `json:"env,omitempty"`
	// Resolve are names, HOST=ADDRESS, for which no resolver is asked. Policy judges the address as any other.
	Resolve []string `json:"resolve,omitempty"`
	// Command is the main command; none: the sandbox waits for others until it is told to stop. The sandbox ends with its main command.
	Command  []string  `json:"command,omitempty"`
	TTY      bool      `json:"tty,omitempty"`
	Deadline time.Time `json:"deadline,omitzero"`
}

// Later is a document that comes into force at a time by the keeper's own clock, so that what is allowed until then does not outlast it where no service is
// there to end it.
type Later struct {
	At     time.Time `json:"at"`
	Policy string    `json:"policy"`
}

// Workspace is a folder of the service's own.
type Workspace struct {
	Dir  string `json:"dir"`  // on the host
	Path string `json:"path"` // inside
	Mode string `json:"mode"` // rw, ro or overlay
	// Alone says that no program of the host works in the folder: then programs inside can have Unix sockets with names, since nobody listens there
	// whom they must not reach.
	Alone bool `json:"alone,omitempty"`
}

// Ready is the one line that a keeper prints once the sandbox runs, or cannot be had.
type Ready struct {
	Socket string   `json:"socket,omitempty"`
	Weaker []string `json:"weaker,omitempty"`
	PID    int      `json:"pid,omitempty"` // of the keeper
	Error  string   `json:"error,omitempty"`
	Kind   string   `json:"kind,omitempty"` // fault.Kind's name
	Hint   string   `json:"hint,omitempty"`
}

// Status is how a sandbox is.
type Status struct {
	Run      ident.Run `json:"run"`
	Started  time.Time `json:"started"`
	Deadline time.Time `json:"deadline,omitzero"`
	// Policy is the hash of the document in force: hex SHA-256.
	Policy string `json:"policy"`
	// Next is when another takes its place by itself; zero: never.
	Next        time.Time `json:"next,omitzero"`
	Connections int64     `json:"connections"`
	Allowed     int64     `json:"allowed"`
	Denied      uint64    `json:"denied"`
	BytesIn     int64     `json:"bytes_in"`
	BytesOut    int64     `json:"bytes_out"`
	// Asks are the crossings that wait for a person.
	Asks []Ask `json:"asks"`
	// Paused says that every process of the sandbox is stopped. The keeper is none of them.
	Paused bool `json:"paused,omitempty"`
	// Ended says that the main command has ended; the keeper leaves soon.
	Ended bool `json:"ended"`
}

// Ask is a crossing that waits for a person. Its texts come from inside.
type Ask struct {
	ID       string    `json:"id"`
	Protocol string    `json:"protocol"`
	Host     string    `json:"host,omitempty"`
	Address  string    `json:"address,omitempty"`
	Port     uint16    `json:"port,omitempty"`
	Method   string    `json:"method,omitempty"`
	Path     string    `json:"path,omitempty"`
	Rule     string    `json:"rule"`
	Process  string    `json:"process,omitempty"`
	Created  time.Time `json:"created"`
	Deadline time.Time `json:"deadline"`
}

// Answer is what a person said to an Ask.
type Answer struct {
	Allow  bool   `json:"allow"`
	Reason string `json:"reason"` // for the record: who, and which rule
	Rule   string `json:"rule"`   // for the record: "approved:ID"; "asked" if it is empty
	// Lasting says that it holds for the rest of the sandbox's life.
	Lasting bool `json:"lasting,omitempty"`
}

// NewPolicy puts another document in force. What it denies and is open is cut before the call returns.
type NewPolicy struct {
	Policy string `json:"policy"`
	// Then are the documents that take its place, the earliest first, at most MaxLater. Those that an earlier call brought are forgotten.
	Then []Later `json:"then,omitempty"`
	// Keep leaves the document in force and what comes after it as they are, and sets Once alone. Policy and Then are empty.
	Keep bool `json:"keep,omitempty"`
	// Once are rules that allow one crossing each and are then gone; the keeper tells with an event of type "used". They take the place of those that an
	// earlier call brought and that were not used; one that was used is left out, whoever sends it again. What a rule of the policy denies, they do not allow.
	Once []OnceRule `json:"once,omitempty"`
}

// OnceRule allows one crossing, which is on record under the rule "approved:ID".
type OnceRule struct {
	ID   string `json:"id"`   // 1 to 40 letters, digits and hyphens
	Rule string `json:"rule"` // as policy.ParseSnippet reads it, with at least one rule that allows
}

// NewDeadline sets when the sandbox ends.
type NewDeadline struct {
	Deadline time.Time `json:"deadline"`
}

// Pause stops every process of the sandbox, or lets them go on.
type Pause struct {
	Paused bool `json:"paused"`
}

// Stop ends the sandbox.
type Stop struct {
	Reason string `json:"reason"`
}

// Event is one thing that a keeper tells while somebody listens: one JSON document a line.
type Event struct {
	Type string `json:"type"` // ask, withdrawn, used, ended
	Ask  *Ask   `json:"ask,omitempty"`
	ID   string `json:"id,omitempty"` // of the ask that was withdrawn, the rule that was used
}

// Exec asks for one more command. The call is upgraded ("Upgrade: cofferdam-exec"): the keeper says in one line, Prepared, what environment and
// directory the command has, and then the service speaks the owner's side of the runner protocol (package frame) with the sandbox, from Hello on,
// whose token was checked and is left out.
type Exec struct {
	Command []string `json:"command"`
	Dir     string   `json:"dir,omitempty"` // the workspace, or /root
	Env     []string `json:"env,omitempty"` // over what the sandbox has
	TTY     bool     `json:"tty,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Cols    uint16   `json:"cols,omitempty"`
	NoStdin bool     `json:"no_stdin,omitempty"`
	// Self runs the runner's own file under the name Command[0], see frame.Start.
	Self bool `json:"self,omitempty"`
}

// Prepared is the one line that the keeper says before the runner's bytes.
type Prepared struct {
	Env []string `json:"env"`
	Dir string   `json:"dir"`
}

// problem is an error as it crosses the socket.
type problem struct {
	Kind  string `json:"kind"`
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

const (
	// MaxSpec bounds a Spec in JSON.
	MaxSpec = 8 << 20
	// MaxLater bounds the documents that come into force later.
	MaxLater = 8
	// protocol is the name under which an exec is upgraded.
	protocol = "cofferdam-exec"

	maxBody  = MaxSpec // of a call, and of its answer
	maxLine  = 64 << 10
	maxReady = 64 << 10
	// maxPrepared bounds Prepared: the environment of a command, in JSON's worst case.
	maxPrepared = 8 << 20
)
