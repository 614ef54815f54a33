package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cofferdam/cofferdam/internal/gateway/git/pack"
	"github.com/cofferdam/cofferdam/internal/gateway/git/wire"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// push is one push on its way through.
type push struct {
	*exchange
	asked   *wire.Push // as the client said it
	sent    *wire.Push // as it goes to the upstream
	op      *policy.GitOperation
	passage Passage
	answer  *wire.Answer
	outcome Outcome
	// proposals are the commands that are stored elsewhere and proposed: by the index of the command.
	proposals map[int]proposal
	contents  *pack.Pack // once it has been read to its end, where it is inspected
}

// push answers git-receive-pack: commands, and mostly a pack. The list of refs was another request, so everything is judged here.
func (x *exchange) push() {
	if x.r.Header.Get("Content-Type") != typeReceiveRequest || x.r.Header.Get("Content-Encoding") != "" {
		x.malformed("the body is not of the type " + typeReceiveRequest + ", uncompressed")
		return
	}
	asked, err := wire.ReadPush(x.r.Body)
	p := &push{exchange: x, asked: asked, sent: asked, answer: wire.NewAnswer(x.w, asked.Capabilities), op: x.operation(policy.WriteAccess)}
	p.op.Options = asked.Options
	for _, c := range asked.Commands {
		p.op.Refs = append(p.op.Refs, policy.GitRef{Name: c.Ref, Change: change(c)})
	}
	if err != nil {
		p.drain()
		p.unreadable(x.gate.Refuse(x.r.Context(), x.crossing(p.op), policy.Decision{Rule: RuleProtocol, Reason: "the push cannot be read: " + err.Error()}))
		return
	}
	if len(asked.Commands) == 0 { // git tries the connection before it sends a long body
		x.w.Header().Set("Content-Type", typeReceiveResult)
		x.w.WriteHeader(http.StatusOK)
		return
	}
	p.propose()
	p.run()
}

// change is what a command does, as far as the command alone tells: an update may turn out to be none that goes forward.
func change(c wire.Command) policy.GitChange {
	switch {
	case c.New.IsZero():
		return policy.GitDelete
	case c.Old.IsZero():
		return policy.GitCreate
	}
	return policy.GitUpdate
}

// run takes the push through the pipeline. What is refused by its commands alone never reaches the upstream.
func (p *push) run() {
	ctx := p.r.Context()
	passage, d := p.gate.Enter(ctx, p.exchange.crossing(p.op), p.upstream.Credential)
	if d.Verdict != policy.Allow {
		p.drain()
		p.refused(d)
		return
	}
	p.passage = passage
	defer func() { passage.Finish(p.outcome) }()
	if err := p.resolve(ctx); err != nil {
		p.drain()
		p.unjudged(err)
		return
	}
	if d := p.gate.Law().Decide(p.exchange.crossing(p.op)); d.Verdict != policy.Allow { // by what symbolic refs stand for
		p.drain()
		p.denied(d)
		return
	}
	p.forward(ctx)
}

// drain reads what the client still sends: git shows an answer only once it has said everything. More than the largest push is cut off.
func (x *exchange) drain() {
	most := int64(1 << 30)
	if x.profile != nil {
		most = x.profile.MaxPush()
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(x.r.Body, most+1<<20)) // a client that is gone gets no answer
}

// resolve finds out which refs of the push are symbolic at the upstream: what they stand for is judged as well, since that is what would be changed.
func (p *push) resolve(ctx context.Context) error {
	var names []string
	for _, c := range p.sent.Commands {
		names = append(names, c.Ref)
	}
	body := wire.AppendLsRefs(nil, p.asked.Format, names...)
	answer, err := p.Ask(ctx, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	symbolic := make(map[string]string, len(names))
	for _, name := range names {
		symbolic[name] = ""
	}
	err = wire.ReadLsRefs(answer, p.asked.Format, func(r wire.Ref) {
		if _, asked := symbolic[r.Name]; asked { // an upstream may say more than it was asked
			symbolic[r.Name] = r.Symbolic
		}
	})
	if err != nil {
		return fmt.Errorf("the upstream does not say which refs are symbolic, for which version 2 of Git's protocol is needed: %w", err)
	}
	for i := range p.op.Refs {
		p.op.Refs[i].Target = symbolic[p.sent.Commands[i].Ref]
	}
	return nil
}

// Ask puts a question of version 2 to the upstream.
func (p *push) Ask(ctx context.Context, body []byte) (io.ReadCloser, error) {
	r, err := p.request(ctx, http.MethodPost, p.target("/git-upload-pack", ""), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", typeUploadRequest)
	return p.question(r, typeUploadResult)
}

// Server asks what the upstream can do.
func (p *push) Server(ctx context.Context) (wire.Server, error) {
	r, err := p.request(ctx, http.MethodGet, p.target("/info/refs", "service=git-upload-pack"), nil)
	if err != nil {
		return wire.Server{}, err
	}
	answer, err := p.question(r, typeUploadList)
	if err != nil {
		return wire.Server{}, err
	}
	defer answer.Close()
	return wire.ReadServer(answer)
}

// question sends a request of our own. The push has its own outcome.
func (p *push) question(r *http.Request, media string) (io.ReadCloser, error) {
	r.Header.Set("Git-Protocol", "version=2")
	answer, err := p.send(p.passage, r, media, &Outcome{})
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

// forward sends the push, and holds back its end until it is judged.
func (p *push) forward(ctx context.Context) {
	head := p.sent.Append(nil)
	p.outcome.Out = int64(len(head))
	end := &holdback{from: http.NoBody} // nothing follows the commands
	if p.asked.HasPack() {
		end = &holdback{from: http.MaxBytesReader(nil, p.r.Body, p.profile.MaxPush()), size: p.asked.Format.Size()}
	}
	if p.asked.HasPack() && p.inspects() {
		scratch, give, err := p.gate.Scratch(ctx)
		if err != nil {
			p.drain()
			p.unjudged(err)
			return
		}
		defer give()
		end.look = pack.NewReader(p.asked.Format, scratch, pack.Limits{})
		defer end.look.Stop()
		end.verdict = func() error { return p.judge(ctx, end.look) }
	}
	sending, cancel := outlive(ctx, end)
	defer cancel()
	r, err := p.request(sending, http.MethodPost, p.target("/git-receive-pack", ""), nil)
	if err != nil {
		p.drain()
		p.unjudged(err)
		return
	}
	r.Header.Set("Content-Type", typeReceiveRequest)
	r.Header.Set("Accept", typeReceiveResult)
	r.Body, r.ContentLength = io.NopCloser(io.MultiReader(bytes.NewReader(head), end)), int64(len(head))
	if p.asked.HasPack() {
		r.ContentLength = -1
	}
	p.deliver(r, end)
}

// reportTime is how long an upstream may take to say what became of a push after its client has gone.
const reportTime = 5 * time.Minute

// outlive returns a context that ends with the client's as long as the upstream can do nothing yet. After that the client's end is no reason not to learn what
// became of the push; the sandbox's end is, which breaks the connection.
func outlive(ctx context.Context, end *holdback) (context.Context, func()) {
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if end.begun() {
			time.AfterFunc(reportTime, cancel)
			return
		}
		cancel()
	})
	return sending, func() { stop(); cancel() }
}

// deliver sends the request, and passes the upstream's report on, or says why there is none.
func (p *push) deliver(r *http.Request, end *holdback) {
	answer, err := p.send(p.passage, r, typeReceiveResult, &p.outcome)
	sent, whole, veto := end.settle()
	p.outcome.Out += sent
	p.drain()
	if err == nil {
		defer answer.Body.Close()
	}
	switch {
	case veto != nil: // an answer can only be about a push that did not arrive whole
		p.vetoed(veto)
		return
	case err != nil && whole && p.outcome.Status == 0:
		p.unknown(err)
		return
	case err != nil:
		p.unjudged(err)
		return
	}
	p.begin()
	said := p.passage.Filter()
	tell := func(text []byte) error { // a client that is gone is no reason not to read on
		_ = p.message(said.Next(text))
		return nil
	}
	report, err := wire.ReadReport(&counted{from: answer.Body, n: &p.outcome.In}, p.sent.Capabilities, tell)
	_ = p.message(said.End()) // as above
	if err != nil {
		p.outcome.Err = fmt.Errorf("sent whole, but the upstream's answer cannot be read: %w", err)
		report = &wire.Report{Unpack: "the upstream's answer cannot be read: look at the repository before you push again"}
	}
	p.clean(report)
	p.finish(p.told(report))
}

// unknown ends a push that the upstream has, without an answer. It was not refused, and must not be recorded or told as if it were.
func (p *push) unknown(err error) {
	p.outcome.Err = fmt.Errorf("sent whole, but what became of it is not known: %w", err)
	const why = "the upstream has it, but did not answer: look at the repository before you push again"
	report := &wire.Report{}
	for _, ref := range p.op.Refs {
		report.Results = append(report.Results, wire.Result{Ref: ref.Name, Refused: why})
		p.outcome.Refs = append(p.outcome.Refs, ref.Name+" unknown")
	}
	p.begin()
	_ = p.message([]byte("cofferdam: " + why + "\n")) // a client that is gone is no matter
	_ = p.answer.Finish(report)                       // as above
}

// clean replaces what was lent in the words of a report, which came in pieces.
func (p *push) clean(report *wire.Report) {
	report.Unpack = p.passage.Clean(report.Unpack)
	for i := range report.Results {
		r := &report.Results[i]
		r.Refused = p.passage.Clean(r.Refused)
		if p.passage.Clean(r.Instead) != r.Instead {
			r.Instead = "" // the client is told of the ref that it asked for
		}
	}
}

// inspects reports whether the verdict depends on what is in the pack.
func (p *push) inspects() bool {
	if p.profile.ProtectsFiles() {
		return true
	}
	for i := range p.op.Refs {
		if p.forwardMatters(i) {
			return true
		}
	}
	return len(p.proposals) > 0 // for the title of what is proposed
}

// forwardMatters reports whether it makes a difference that an update goes forward.
func (p *push) forwardMatters(i int) bool {
	ref := p.op.Refs[i]
	if ref.Change != policy.GitUpdate || p.sent.Commands[i].Old.IsZero() {
		return false
	}
	forced := ref
	forced.Change = policy.GitForce
	return p.profile.DecideRef(ref).Verdict != p.profile.DecideRef(forced).Verdict
}

// refusal is a verdict of policy on a push whose pack was seen.
type refusal struct{ policy.Decision }

func (r refusal) Error() string { return r.Reason }

// judge decides with the whole pack seen.
func (p *push) judge(ctx context.Context, look *pack.Reader) error {
	contents, err := look.Close()
	if err != nil {
		return err
	}
	p.contents = contents
	for _, id := range p.asked.Shallow {
		if _, ok, err := contents.Commit(id); ok || err != nil {
			return errors.Join(errors.New("the push would cut off the history of its own commits"), err)
		}
	}
	have := pack.NewUpstream(p.asked.Format, p)
	var tips []wire.ID
	for i, c := range p.sent.Commands {
		if !c.New.IsZero() {
			tips = append(tips, c.New)
		}
		if !p.forwardMatters(i) {
			continue
		}
		forward, err := contents.FastForward(ctx, have, c.Old, c.New)
		if err != nil {
			return err
		}
		if !forward {
			p.op.Refs[i].Change = policy.GitForce
			continue
		}
		if !p.profile.ProtectsFiles() || !strings.HasPrefix(c.Ref, heads) {
			continue
		}
		files, err := contents.Overwritten(ctx, have, c.Old, c.New, p.profile)
		if err != nil {
			return err
		}
		p.op.Files = append(p.op.Files, files...)
	}
	if p.profile.ProtectsFiles() {
		files, err := contents.Changed(ctx, have, tips, p.profile)
		if err != nil {
			return err
		}
		p.op.Files = append(p.op.Files, files...)
		slices.Sort(p.op.Files)
		p.op.Files = slices.Compact(p.op.Files)
	}
	if d := p.gate.Law().Decide(p.exchange.crossing(p.op)); d.Verdict != policy.Allow {
		return refusal{d}
	}
	return nil
}

// vetoed answers a push whose end was held back for good.
func (p *push) vetoed(err error) {
	if denied, ok := errors.AsType[refusal](err); ok {
		p.denied(denied.Decision)
		return
	}
	if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
		err = fmt.Errorf("the push has more than the %d bytes that are allowed here", tooLong.Limit)
	}
	p.unjudged(err)
}

// denied records the refusal of a push that had begun, and tells it.
func (p *push) denied(d policy.Decision) {
	d = p.passage.Refuse(p.r.Context(), p.exchange.crossing(p.op), d)
	p.outcome.Err = errors.New("refused: rule " + d.Rule)
	p.refused(d)
}

// unjudged refuses what could not be judged or sent.
func (p *push) unjudged(err error) {
	why := "the push cannot be judged: " + err.Error()
	if f, ok := errors.AsType[failure](err); ok {
		why = f.text
	} else if _, ok := errors.AsType[*fs.PathError](err); ok {
		why = "the push cannot be judged: there is no room in which to do it" // not where on the host that is
	}
	p.denied(policy.Decision{Rule: RuleUnjudged, Reason: why})
}

// begin begins the answer: from here on it is written in Git's own terms.
func (p *push) begin() {
	p.w.Header().Set("Content-Type", typeReceiveResult)
	p.w.WriteHeader(http.StatusOK)
}

// unreadable answers a push of which some commands may have been read: by a report if they were, since of another status clients show only the number.
func (p *push) unreadable(d policy.Decision) {
	if len(p.asked.Commands) == 0 || !p.answer.Readable() {
		p.say(http.StatusBadRequest, d.Reason)
		return
	}
	p.refused(d)
}

// refused answers with a report in which no ref was set. Each ref that policy would have let through says that it was not tried: a push is taken whole or not.
func (p *push) refused(d policy.Decision) {
	if !p.answer.Readable() {
		p.say(http.StatusForbidden, d.Reason)
		return
	}
	p.begin()
	if err := p.message([]byte("cofferdam: " + d.Reason + "\n")); err != nil {
		return
	}
	report := &wire.Report{}
	for _, ref := range p.op.Refs {
		why := d.Reason
		if p.profile != nil {
			if own := p.profile.DecideRef(ref); own.Verdict != policy.Allow {
				why = own.Reason
			} else if len(p.op.Refs) > 1 {
				why = "not tried: " + d.Reason
			}
		}
		report.Results = append(report.Results, wire.Result{Ref: ref.Name, Refused: why})
	}
	p.finish(report)
}

// message shows the person a text as it comes.
func (p *push) message(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	if err := p.answer.Message(text); err != nil {
		return err
	}
	return http.NewResponseController(p.w).Flush()
}

// finish ends the answer, and notes for the record what became of each ref.
func (p *push) finish(report *wire.Report) {
	for _, r := range report.Results {
		line := r.Ref + " ok"
		if r.Refused != "" {
			line = r.Ref + " refused"
		} else if r.Instead != "" {
			line = r.Ref + " as " + r.Instead
		}
		p.outcome.Refs = append(p.outcome.Refs, line)
	}
	if report.Unpack != "" && p.outcome.Err == nil {
		p.outcome.Err = errors.New("the upstream did not take the pack")
	}
	if err := p.answer.Finish(report); err != nil && p.outcome.Err == nil {
		p.outcome.Err = err
	}
}
