// Package audit (LAW) keeps the record of every crossing: append-only, hash-chained, verified record by record. If an event cannot be written, what it describes must not happen.
package audit

import (
	"time"

	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/receipt"
)

// Kind says what an event records.
type Kind string

// The kinds of events.
const (
	RunStarted        Kind = "run.started"        // a sandbox is about to exist
	RunEnded          Kind = "run.ended"          // it is gone; Detail says how and what was erased
	RunPaused         Kind = "run.paused"         // a person is about to have every process of it stopped
	RunResumed        Kind = "run.resumed"        // and to let them go on
	SandboxErased     Kind = "sandbox.erased"     // what became of all that a run had, item by item: the deletion receipt
	CrossingDecided   Kind = "crossing.decided"   // policy has decided; written before anything is forwarded
	CrossingFinished  Kind = "crossing.finished"  // an allowed crossing is over
	PolicyChanged     Kind = "policy.changed"     // a human's answer changed policy while it was in force
	CredentialChanged Kind = "credential.changed" // a credential, or the key that seals them, is about to be added, changed or erased; Detail says which
	AgentChanged      Kind = "agent.changed"      // of a service: an agent is about to be made, changed or removed
	UserChanged       Kind = "user.changed"       // a user, or a tenant
	TokenChanged      Kind = "token.changed"      // an API token
	SessionEnded      Kind = "session.ended"      // a person ended a sign-in
	SettingsChanged   Kind = "settings.changed"   // a tenant's settings
	GitChanged        Kind = "git.changed"        // a Git server, or an access profile
	ReviewDecided     Kind = "review.decided"     // a person answered a denial or an approval, or a rule of theirs changed
	SignedIn          Kind = "user.signed-in"     // somebody proved who they are
	SignInRefused     Kind = "sign-in.refused"    // somebody did not; Count sums up a flood
	WorkspaceApplied  Kind = "workspace.applied"  // changes were applied to, or dropped from, a workspace
	SandboxChanged    Kind = "sandbox.changed"    // a person told a sandbox to end, or when to
	CommandStarted    Kind = "command.started"    // a person or a program has one more command run in a sandbox, or reads or writes a file there
	WorkspaceChanged  Kind = "workspace.changed"  // a persistent workspace is about to be made or removed
	ImagePulled       Kind = "image.pulled"       // an image was verified and is about to be kept, or was refused, or did not come; Detail says which, and who was spoken to
	LogRepaired       Kind = "log.repaired"       // the log itself was damaged and mended; Detail says what was cut off or is missing
)

// Kinds returns all kinds of events.
func Kinds() []Kind {
	return []Kind{RunStarted, RunEnded, RunPaused, RunResumed, SandboxErased, CrossingDecided, CrossingFinished, PolicyChanged, CredentialChanged, AgentChanged, UserChanged, TokenChanged, SessionEnded,
		SettingsChanged, GitChanged, ReviewDecided, SignedIn, SignInRefused, SandboxChanged, CommandStarted, WorkspaceChanged, WorkspaceApplied, ImagePulled, LogRepaired}
}

// Event is one record. Fields that do not apply stay empty and are not written. Everything that a sandbox can influence
// (Host, Process, Method, Path, ServerName, Detail) is bounded to MaxText bytes by Append and stored as valid UTF-8.
type Event struct {
	Seq  uint64    `json:"seq"`  // position in the log, from 1
	Time time.Time `json:"time"` // UTC
	Kind Kind      `json:"kind"`
	Run  ident.Run `json:"run,omitempty"`
	// Tenant and Agent say whose it is, where a service keeps several: on the start of a run, and on what people do. Other events of a run belong where its
	// start does.
	Tenant string `json:"tenant,omitempty"`
	Agent  string `json:"agent,omitempty"`
	// Principal says who acts: "sandbox", "user", "system"; at the service also who asked, such as "user:ID".
	Principal string `json:"principal,omitempty"`
	// Crossing ties a decided event to its finished one, unique within a run.
	Crossing uint64 `json:"crossing,omitempty"`

	Protocol string `json:"protocol,omitempty"` // policy.Protocol's name
	Access   string `json:"access,omitempty"`   // "read", "write" or "" where it cannot be told
	Host     string `json:"host,omitempty"`     // the name the program asked for
	Address  string `json:"address,omitempty"`  // raw destination, or the upstream address dialled
	Port     uint16 `json:"port,omitempty"`
	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"`
	Verdict  string `json:"verdict,omitempty"` // "allow", "deny", "ask"
	Rule     string `json:"rule,omitempty"`
	Reason   string `json:"reason,omitempty"`
	// Repository is UPSTREAM/PATH of an operation at the Git proxy; Refs are what a push wants to do to each ref or, at its end, what became of each.
	Repository string   `json:"repository,omitempty"`
	Refs       []string `json:"refs,omitempty"`
	// Process is the program inside as the sandbox itself reports it: a help for people, no evidence.
	Process string `json:"process,omitempty"`
	PID     int    `json:"pid,omitempty"` // inside the sandbox
	// Count is how many crossings a summed-up record of a flood stands for; 0 and 1 mean one.
	Count uint64 `json:"count,omitempty"`

	// Credential names the credentials that policy lends to the crossing, or, of a refusal, the one that was misused; never a value.
	Credential string `json:"credential,omitempty"`
	// Grant says where policy lends them: file and line of each entry, in the order of Credential.
	Grant string `json:"grant,omitempty"`
	// Redactions counts the secrets that the answer echoed and that were replaced.
	Redactions int64 `json:"redactions,omitempty"`
	// Type is what the upstream called the body that came back; Digest is that body's hash as the program got it, such as "sha256:9f86...",
	// if the gateway read it and it is whole and not large. Of an image it is the manifest's.
	Type   string `json:"type,omitempty"`
	Digest string `json:"digest,omitempty"`

	Status   int    `json:"status,omitempty"`    // HTTP status that came back
	BytesIn  int64  `json:"bytes_in,omitempty"`  // upstream to sandbox
	BytesOut int64  `json:"bytes_out,omitempty"` // sandbox to upstream
	Millis   int64  `json:"millis,omitempty"`    // how long it was open
	Error    string `json:"error,omitempty"`

	// Isolation labels the run: level, and what is weaker than asked for.
	Isolation string   `json:"isolation,omitempty"`
	Weaker    []string `json:"weaker,omitempty"`
	Command   []string `json:"command,omitempty"`
	// Erased is the deletion receipt of a run.
	Erased []receipt.Item `json:"erased,omitempty"`
	Detail string         `json:"detail,omitempty"`

	Prev string `json:"prev"` // hex SHA-256 of the record before; 64 zeros in the first
	Hash string `json:"hash"` // hex SHA-256 over this record's bytes without the hash member
}

// MaxText bounds every text that a sandbox can influence, in bytes.
const MaxText = 512
