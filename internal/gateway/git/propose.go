package git

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway/git/forge"
	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// proposeTime is how long a forge may take to open a pull request.
const proposeTime = time.Minute

const heads = "refs/heads/"

// proposal is a command whose commit is stored under a ref of its own, instead of in the branch that it was pushed to.
type proposal struct{ base, head string } // whole refs

// propose turns pushes to branches that are not open, but for which policy has pull requests, into proposals.
func (p *push) propose() {
	if p.profile == nil {
		return
	}
	sent := *p.asked
	sent.Commands = append([]wire.Command(nil), p.asked.Commands...)
	for i, c := range p.asked.Commands {
		ref := &p.op.Refs[i]
		pattern, ok := p.profile.Proposes(c.Ref)
		if !ok || c.New.IsZero() || p.profile.DecideRef(*ref).Verdict == policy.Allow {
			continue
		}
		head, err := policy.ProposalRef(pattern, c.Ref, c.New.String()[:7]+fresh())
		if err != nil {
			continue // policy refuses the push to the branch itself, and says why
		}
		ref.Change = policy.GitPropose
		sent.Commands[i] = wire.Command{Old: p.asked.Format.Zero(), New: c.New, Ref: head}
		if p.proposals == nil {
			p.proposals = map[int]proposal{}
		}
		p.proposals[i] = proposal{base: c.Ref, head: head}
	}
	p.sent = &sent
}

// fresh makes names differ: the same commit may be proposed again.
func fresh() string {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// told translates the upstream's report into one about what the client asked for, and opens the pull requests of what was stored.
func (p *push) told(report *wire.Report) *wire.Report {
	byRef := map[string]wire.Result{}
	for _, r := range report.Results {
		byRef[r.Ref] = r
	}
	told := &wire.Report{Unpack: report.Unpack}
	for i, asked := range p.asked.Commands {
		result, ok := byRef[p.sent.Commands[i].Ref]
		if !ok {
			result.Refused = "the upstream said nothing about it"
		}
		result.Ref = asked.Ref
		if one, proposed := p.proposals[i]; proposed && result.Refused == "" {
			result = p.proposed(i, one)
		}
		told.Results = append(told.Results, result)
	}
	return told
}

// proposed opens the pull request for a commit that was stored.
func (p *push) proposed(i int, one proposal) wire.Result {
	opened, err := p.open(i, one)
	base, head := strings.TrimPrefix(one.base, heads), strings.TrimPrefix(one.head, heads)
	if err != nil {
		why := fmt.Sprintf("stored as %s, but no pull request could be opened: %s", head, fault.Public(err))
		_ = p.message([]byte("cofferdam: " + base + " is protected here; " + why + "\n")) // if the client is gone, Finish says so
		return wire.Result{Ref: one.base, Refused: why}
	}
	verb := "opened"
	if opened.Existing {
		verb = "updated"
	}
	_ = p.message(fmt.Appendf(nil, "cofferdam: %s is protected here; pull request %s: %s\n", base, verb, opened.URL)) // as above
	c := p.sent.Commands[i]
	if !p.asked.Capabilities.Has("report-status-v2") { // it cannot be told that another ref was set, and must not believe that this one was
		return wire.Result{Ref: one.base, Refused: "proposed as " + head + ": " + opened.URL}
	}
	return wire.Result{Ref: one.base, Instead: one.head, From: c.Old, To: c.New}
}

// open opens one pull request. Each request to the forge is a crossing of its own.
func (p *push) open(i int, one proposal) (forge.Opened, error) {
	api := p.upstream.API
	if api.Host == "" {
		return forge.Opened{}, fault.New(fault.Unsupported, "policy says of %s only that it speaks Git", p.upstream.Name)
	}
	base := &url.URL{Scheme: "https", Host: hostPort(api.Host, api.Port), Path: api.Path}
	title, body := p.describe(i, one)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.r.Context()), proposeTime) // it is stored already
	defer cancel()
	return forge.Open(ctx, p.call(i, api), p.upstream.Type, base, forge.Proposal{
		Repository: p.repository, Head: strings.TrimPrefix(one.head, heads), Base: strings.TrimPrefix(one.base, heads), Title: title, Body: body,
		Web: &url.URL{Scheme: "https", Host: authority(p.upstream), Path: p.upstream.Path},
	})
}

// call sends one request to the forge's API.
func (p *push) call(i int, api policy.GitAPI) forge.Doer {
	return func(ctx context.Context, r *http.Request) (*http.Response, error) {
		ref := policy.GitRef{Name: p.proposals[i].base, Change: policy.GitPropose}
		c := policy.Crossing{Protocol: policy.Git, Host: api.Host, Port: api.Port, Method: r.Method, Path: r.URL.Path, Git: &policy.GitOperation{
			Upstream: p.upstream.Name, Repository: p.repository, Access: policy.WriteAccess, Refs: []policy.GitRef{ref},
		}}
		passage, d := p.gate.Enter(ctx, c, api.Credential)
		if d.Verdict != policy.Allow {
			return nil, fault.New(fault.Denied, "%s", d.Reason)
		}
		answer, err := passage.Send(r.WithContext(ctx))
		if err != nil {
			passage.Finish(Outcome{Err: err})
			return nil, err
		}
		answer.Body = &finishing{ReadCloser: answer.Body, passage: passage, o: Outcome{Status: answer.StatusCode}}
		return answer, nil
	}
}

// describe makes title and text of a pull request from the commit that is proposed.
func (p *push) describe(i int, one proposal) (title, body string) {
	title = "Changes for " + strings.TrimPrefix(one.base, heads)
	if p.contents != nil {
		if message, ok := p.contents.Message(p.sent.Commands[i].New); ok {
			subject, rest, _ := strings.Cut(strings.TrimSpace(message), "\n")
			if subject = strings.TrimSpace(subject); subject != "" {
				title = subject
				if rest = strings.TrimSpace(rest); rest != "" {
					body = rest + "\n\n"
				}
			}
		}
	}
	return title, body + "Pushed to " + strings.TrimPrefix(one.base, heads) + " from a sandbox, where that branch is protected."
}
