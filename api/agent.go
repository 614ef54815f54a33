package api

import "time"

// Agent is an AI program, or any other untrusted one, under a policy of its own.
type Agent struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Description string            `json:"description,omitempty"`
	Policy      string            `json:"policy"`      // identifier of its policy
	PolicyName  string            `json:"policy_name"` // for people
	Profiles    []string          `json:"profiles"`    // identifiers of access profiles for Git
	Isolation   string            `json:"isolation,omitempty"`
	Command     []string          `json:"command,omitempty"` // what its sandboxes run unless they say otherwise
	Environment map[string]string `json:"environment,omitempty"`
	Suspended   bool              `json:"suspended"`
	Running     int               `json:"running"` // sandboxes now
	Denials     int               `json:"denials"` // open in the inbox
	Created     time.Time         `json:"created"`
	Updated     time.Time         `json:"updated"`
	Version     int64             `json:"version"`
}

// NewAgent asks for an agent. Without a policy it gets one of its own that allows nothing.
type NewAgent struct {
	Name        string            `json:"name" maxLength:"63"`
	Description string            `json:"description,omitempty" maxLength:"1000"`
	Policy      string            `json:"policy,omitempty"`
	PolicyText  string            `json:"policy_text,omitempty" maxLength:"1048576"` // of a policy made with it, named like the agent
	Profiles    []string          `json:"profiles,omitempty"`
	Isolation   string            `json:"isolation,omitempty"`
	Command     []string          `json:"command,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
}

// AgentChange changes what is not nil. Suspending ends the agent's sandboxes.
type AgentChange struct {
	Name        *string            `json:"name,omitempty" maxLength:"63"`
	Description *string            `json:"description,omitempty" maxLength:"1000"`
	Policy      *string            `json:"policy,omitempty"`
	Profiles    *[]string          `json:"profiles,omitempty"`
	Isolation   *string            `json:"isolation,omitempty"`
	Command     *[]string          `json:"command,omitempty"`
	Environment *map[string]string `json:"environment,omitempty"`
	Suspended   *bool              `json:"suspended,omitempty"`
}

// Policy is a policy document with its history.
type Policy struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Number   int       `json:"number"` // of the newest version, from 1
	Text     string    `json:"text"`   // of the newest version; left out in lists
	Comment  string    `json:"comment,omitempty"`
	Author   string    `json:"author"`
	Warnings []string  `json:"warnings,omitempty"`
	Agents   int       `json:"agents"` // that have it
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated"`
	Version  int64     `json:"version"`
}

// NewPolicy asks for a policy.
type NewPolicy struct {
	Name    string `json:"name" maxLength:"63"`
	Text    string `json:"text" maxLength:"1048576"`
	Comment string `json:"comment,omitempty" maxLength:"1000"`
}

// PolicyChange makes a new version of a policy, or renames it. A new text is in force in running sandboxes within a second; what it denies is cut.
type PolicyChange struct {
	Name    *string `json:"name,omitempty" maxLength:"63"`
	Text    *string `json:"text,omitempty" maxLength:"1048576"`
	Comment string  `json:"comment,omitempty" maxLength:"1000"`
}

// PolicyVersion is one version of a policy.
type PolicyVersion struct {
	Number  int       `json:"number"`
	Text    string    `json:"text,omitempty"` // left out in lists
	Comment string    `json:"comment,omitempty"`
	Author  string    `json:"author"`
	Created time.Time `json:"created"`
}

// PolicyText is a policy document to check.
type PolicyText struct {
	Text string `json:"text" maxLength:"1048576"`
}

// PolicyCheck says what is wrong with a document.
type PolicyCheck struct {
	OK       bool            `json:"ok"`
	Problems []PolicyProblem `json:"problems"`
	Warnings []string        `json:"warnings"`
}

// PolicyProblem is one mistake and its place.
type PolicyProblem struct {
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Text   string `json:"text"`
	Hint   string `json:"hint,omitempty"`
}

// ExplainRequest asks what a policy decides about a destination: HOST:PORT, a URL, ADDRESS:PORT or git:UPSTREAM/REPOSITORY.
// Text, if given, is judged in the place of what is stored; Agent asks about all that is in force for it.
type ExplainRequest struct {
	Target string `json:"target" maxLength:"2000"`
	Method string `json:"method,omitempty" maxLength:"20"`
	Ref    string `json:"ref,omitempty" maxLength:"500"`
	Policy string `json:"policy,omitempty"`
	Agent  string `json:"agent,omitempty"`
	Text   string `json:"text,omitempty" maxLength:"1048576"`
}

// Explanation is a decision with the walk over the rules that led to it.
type Explanation struct {
	Crossing string        `json:"crossing"`
	Verdict  string        `json:"verdict"`
	Rule     string        `json:"rule"`
	Line     int           `json:"line,omitempty"`
	Reason   string        `json:"reason"`
	Steps    []ExplainStep `json:"steps"`
}

// ExplainStep is one rule and what it contributed.
type ExplainStep struct {
	Rule    string `json:"rule"`
	Line    int    `json:"line,omitempty"`
	Verdict string `json:"verdict"`
	Matched bool   `json:"matched"`
	Why     string `json:"why"`
}

// ReplayRequest asks what a policy would have decided about recorded crossings.
type ReplayRequest struct {
	Text  string    `json:"text" maxLength:"1048576"`
	Agent string    `json:"agent,omitempty"` // whose crossings; all of the policy's agents if empty
	Since time.Time `json:"since,omitzero"`  // the last seven days if left out
}

// Replay is what would change.
type Replay struct {
	Crossings int            `json:"crossings"` // that were judged again
	Truncated bool           `json:"truncated"` // there were more than the server looks at
	Changed   []ReplayChange `json:"changed"`   // grouped, most frequent first
}

// ReplayChange is a group of crossings that would be decided otherwise.
type ReplayChange struct {
	Destination string    `json:"destination"`
	Operation   string    `json:"operation,omitempty"`
	Before      string    `json:"before"`
	After       string    `json:"after"`
	Rule        string    `json:"rule"` // that would decide
	Count       int       `json:"count"`
	Last        time.Time `json:"last"`
}
