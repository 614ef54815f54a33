package api

import (
	"encoding/json"
	"time"
)

// NewTenant asks for a tenant with its first administrator.
type NewTenant struct {
	Name  string `json:"name" maxLength:"100"`
	Email string `json:"email" maxLength:"254"` // of the administrator, who is invited
}

// TenantMade is a new tenant with the invitation of its administrator.
type TenantMade struct {
	Tenant     Tenant     `json:"tenant"`
	Invitation Invitation `json:"invitation"`
}

// Stop ends a sandbox.
type Stop struct {
	Reason string `json:"reason,omitempty" maxLength:"500"` // for the record
}

// RuleText is a rule to check for an agent.
type RuleText struct {
	Agent string `json:"agent" maxLength:"100"`
	Rule  string `json:"rule" maxLength:"10000"`
}

// EffectivePolicy is the document that is in force for an agent.
type EffectivePolicy struct {
	Text string `json:"text"`
}

// PolicyDiff is a unified diff of two versions.
type PolicyDiff struct {
	Diff string `json:"diff"`
}

// Files is a directory inside a sandbox.
type Files struct {
	Items     []File `json:"items"`
	Truncated bool   `json:"truncated,omitempty"`
}

// Counts is what an overview shows.
type Counts struct {
	Agents    int `json:"agents"`
	Running   int `json:"running"` // sandboxes
	Denials   int `json:"denials"` // open
	Approvals int `json:"approvals"`
	Proposed  int `json:"proposed"` // rules that wait for a second person
}

// Output is a piece of what a sandbox's main command said, as sent over server-sent events of type "output". The last one has Ended.
type Output struct {
	Offset  int64  `json:"offset"`            // of the first byte
	Skipped int64  `json:"skipped,omitempty"` // bytes before it that are not kept any more
	Data    []byte `json:"data,omitempty"`    // base64
	Ended   bool   `json:"ended,omitempty"`
}

// ExecControl is what a client says, as text, of a command that runs over a WebSocket. One member is set.
//
// The first message is Exec, as text. Then binary messages carry input: a zero byte, then the data. The server sends binary messages, of which the first
// byte is 1 for output and 2 for errors, and ExecMessage as text.
type ExecControl struct {
	Resize     *[2]uint16 `json:"resize,omitempty"` // rows, columns
	Signal     int        `json:"signal,omitempty"`
	CloseStdin bool       `json:"close_stdin,omitempty"`
}

// ExecMessage is what the server says, as text, of a command that runs over a WebSocket. One member is set; Exit or Error is the last message.
type ExecMessage struct {
	Started *ExecStarted `json:"started,omitempty"`
	Exit    *ExecExit    `json:"exit,omitempty"`
	Error   *Problem     `json:"error,omitempty"`
}

// ExecStarted says that the command runs.
type ExecStarted struct {
	Run string `json:"run"`
}

// ExecExit is how a command ended. Signal, if not zero, ended it; Error says why it never started.
type ExecExit struct {
	Code   int    `json:"code"`
	Signal int    `json:"signal,omitempty"`
	Error  string `json:"error,omitempty"`
}

// SignIn is a password.
type SignIn struct {
	Email    string `json:"email" maxLength:"254"`
	Password string `json:"password" maxLength:"1024"`
}

// SignedIn is what came of a step of signing in: Done, with a session in a cookie; or one of Factors is needed too.
type SignedIn struct {
	Done    bool      `json:"done"`
	Expires time.Time `json:"expires,omitzero"`
	Factors []string  `json:"factors,omitempty"` // totp, recovery, passkey
}

// Code is a one-time code, or a recovery code.
type Code struct {
	Code string `json:"code" maxLength:"100"`
}

// ResetRequest asks for a link by which a password can be set.
type ResetRequest struct {
	Email string `json:"email" maxLength:"254"`
}

// NewPassword sets a password by a link's token.
type NewPassword struct {
	Token    string `json:"token" maxLength:"200"`
	Password string `json:"password" maxLength:"1024"`
}

// Setup makes the first tenant and its administrator.
type Setup struct {
	Token    string `json:"token" maxLength:"200"`
	Email    string `json:"email" maxLength:"254"`
	Name     string `json:"name,omitempty" maxLength:"100"`
	Password string `json:"password" maxLength:"1024"`
	Tenant   string `json:"tenant" maxLength:"100"`
}

// PasskeyOptions is what a browser's navigator.credentials is called with, in the JSON form of WebAuthn.
type PasskeyOptions struct {
	Options json.RawMessage `json:"options"`
}

// PasskeyAnswer is what navigator.credentials answered, in the JSON form of WebAuthn.
type PasskeyAnswer struct {
	Label    string          `json:"label,omitempty" maxLength:"100"` // of a new one
	Response json.RawMessage `json:"response"`
}

// Passkey is a passkey of the caller's.
type Passkey struct {
	ID      string    `json:"id"`
	Label   string    `json:"label"`
	Created time.Time `json:"created"`
	Used    time.Time `json:"used,omitzero"`
}

// PasskeyMade is a new passkey, with recovery codes where the user had none yet. They are shown once.
type PasskeyMade struct {
	Passkey  Passkey  `json:"passkey"`
	Recovery []string `json:"recovery,omitempty"`
}

// Label renames a passkey.
type Label struct {
	Label string `json:"label" maxLength:"100"`
}

// Password is shown again before what protects an account is changed. A person who has none leaves it empty, and must have signed in a moment ago.
type Password struct {
	Password string `json:"password" maxLength:"1024"`
}

// PasswordChange sets the caller's own password. All sessions end; this browser gets a new one.
type PasswordChange struct {
	Old string `json:"old" maxLength:"1024"`
	New string `json:"new" maxLength:"1024"`
}

// TOTPEnrolment is what an authenticator is set up with, shown once.
type TOTPEnrolment struct {
	Secret string `json:"secret"`
	URL    string `json:"url"`
	SVG    string `json:"svg"` // the URL as a QR code
}

// RecoveryCodes are shown once.
type RecoveryCodes struct {
	Codes []string `json:"codes"`
}

// Provider is a sign-in service; its sign-in begins at /api/v1/auth/oidc/ID/start.
type Provider struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}
