package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/cofferdam/cofferdam/internal/frame"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
	"github.com/cofferdam/cofferdam/internal/terminal"
)

// notifier tells the person what happens at the boundary: as lines, as JSON, or not at all. It is safe for concurrent use.
type notifier struct {
	out   io.Writer
	json  bool
	quiet bool
	// ceiling is what the person allows, where a folder's own policy narrows it.
	ceiling *policy.Policy

	mu       sync.Mutex
	attached *terminal.Session
}

func newNotifier(out io.Writer, json, quiet bool) *notifier {
	return &notifier{out: out, json: json, quiet: quiet}
}

// attach sends what follows through the session, which knows the state of the terminal.
func (n *notifier) attach(s *terminal.Session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attached = s
}

func (n *notifier) session() *terminal.Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attached
}

// line prints one line, made inert by the session where there is one.
func (n *notifier) line(text string) {
	if s := n.session(); s != nil {
		s.Notify(text)
		return
	}
	fmt.Fprintln(n.out, text)
}

// object prints one JSON line.
func (n *notifier) object(kind string, v any) {
	data, err := json.Marshal(map[string]any{kind: v})
	if err != nil {
		return // our own types always encode
	}
	n.line(string(data))
}

// note tells something worth knowing.
func (n *notifier) note(text string) {
	switch {
	case n.quiet:
	case n.json:
		n.object("note", text)
	default:
		n.line("cofferdam: " + text)
	}
}

// trouble tells an error, also when quiet.
func (n *notifier) trouble(err error, hint string) {
	if n.json {
		n.object("error", map[string]string{"error": err.Error(), "hint": hint})
		return
	}
	fmt.Fprintln(n.out, "cofferdam:", err)
	if hint != "" {
		fmt.Fprintln(n.out, "  hint:", hint)
	}
}

// deniedJSON is a denial in --json output.
type deniedJSON struct {
	Destination string `json:"destination"`
	Protocol    string `json:"protocol"`
	Process     string `json:"process,omitempty"`
	PID         int    `json:"pid,omitempty"`
	Rule        string `json:"rule"`
	Reason      string `json:"reason"`
	Allow       string `json:"allow,omitempty"`
}

// denied tells one denial: what, by which process, why, and the flag that would allow it.
func (n *notifier) denied(d gateway.Denial) {
	if n.quiet || isServiceQuestion(d.Crossing) {
		return
	}
	remedy := n.remedyFor(d)
	if n.json {
		n.object("denied", deniedJSON{
			Destination: destination(d.Crossing), Protocol: d.Crossing.Protocol.String(), Process: d.Owner.Name, PID: d.Owner.PID,
			Rule: d.Decision.Rule, Reason: d.Decision.Reason, Allow: remedy,
		})
		return
	}
	text := "cofferdam: denied " + process(d.Owner) + " → " + destination(d.Crossing) + ": " + d.Decision.Reason
	if remedy != "" {
		text += "; to allow: " + remedy
	}
	n.line(text)
}

// isServiceQuestion says whether a program asked for a service record (RFC 2782, _http._tcp.HOST), as apt does of every mirror before it asks for the
// mirror itself. It is on record; telling it would only teach to allow names that are no hosts.
func isServiceQuestion(c policy.Crossing) bool {
	return c.Protocol == policy.DNS && strings.HasPrefix(string(c.Host), "_") && strings.Contains(string(c.Host), "._tcp.")
}

// remedyFor names the flag that would allow a denied crossing; empty where none would.
func (n *notifier) remedyFor(d gateway.Denial) string {
	if n.allowed(d.Crossing) {
		return "--ignore-repository-policy, or list it in the folder's cofferdam.yaml"
	}
	if d.Decision.Rule == "special-address" && d.Crossing.Addr.IsValid() && d.Crossing.Host != "" {
		return policy.NetworkFlag(d.Crossing.Addr)
	}
	if block, special := netname.Special(d.Crossing.Addr); special && block.Metadata {
		return "" // no hint leads to the cloud's credentials; a person who means it writes a rule
	}
	return policy.AllowFlag(d.Crossing)
}

// allowed says whether the person allows what the folder's own policy narrowed away.
func (n *notifier) allowed(c policy.Crossing) bool {
	if n.ceiling == nil {
		return false
	}
	if c.Protocol == policy.DNS {
		return n.ceiling.DecideName(c.Host).Verdict == policy.Allow
	}
	return n.ceiling.Decide(c).Verdict == policy.Allow
}

// destination names where a crossing goes.
func destination(c policy.Crossing) string {
	if c.Git != nil {
		return "git " + c.Git.Upstream + "/" + c.Git.Repository
	}
	name := string(c.Host)
	if name == "" && c.Addr.IsValid() {
		name = c.Addr.String()
		if c.Addr.Is6() {
			name = "[" + name + "]"
		}
	}
	if c.Port != 0 {
		name += ":" + strconv.Itoa(int(c.Port))
	}
	switch c.Protocol {
	case policy.UDP, policy.ICMP, policy.Other:
		name += " (" + c.Protocol.String() + ")"
	case policy.DNS:
		name += " (name)"
	}
	return name
}

// process names a program inside, as the sandbox itself reports it.
func process(o frame.Owner) string {
	if o.PID == 0 {
		return "a program"
	}
	return fmt.Sprintf("%s[%d]", o.Name, o.PID)
}

// summary tells what a run came to, if there is anything to say.
func (n *notifier) summary(s summary) {
	n.attach(nil)
	if n.json {
		n.object("summary", s)
		return
	}
	if s.ExitCode == exitTimeout || s.ExitCode == exitOurs { // ours, so also when quiet
		n.line("cofferdam: " + s.How)
	}
	if n.quiet {
		return
	}
	for _, p := range s.Problems {
		n.line("cofferdam: problem: " + p)
	}
	for _, l := range s.Limits {
		n.line("cofferdam: " + l)
	}
	if s.Denied > 0 {
		n.line(fmt.Sprintf("cofferdam: %s denied (%s), %s allowed; see: cofferdam audit %s", plural(s.Destinations, "destination", "destinations"),
			plural(int(s.Denied), "attempt", "attempts"), plural(int(s.Allowed), "crossing", "crossings"), s.Run))
	}
	if s.Changed > 0 {
		n.line(fmt.Sprintf("cofferdam: %s kept apart; see: cofferdam diff %s   take them: cofferdam apply %s", plural(s.Changed, "change", "changes"), s.Run, s.Run))
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
