package web

import (
	"encoding/json"
	"io"
	"net/http"

	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// mostAnswer bounds what a browser answers with.
const mostAnswer = 64 << 10

// answer is what the script of passkeys gets: where to go, or what is wrong.
type answer struct {
	Options  json.RawMessage `json:"options,omitempty"`
	Location string          `json:"location,omitempty"`
	Problem  string          `json:"problem,omitempty"`
	Codes    []string        `json:"codes,omitempty"`
}

// respond answers a script. Errors that a person can do something about are an answer too.
func (v *visit) respond(a answer, err error) error {
	status := http.StatusOK
	if err != nil {
		kind := fault.KindOf(err)
		if kind == fault.Internal {
			v.log.Error("answer a script", "path", v.r.URL.Path, "error", err)
		}
		a = answer{Problem: sentence(fault.Public(err))}
		if hint := fault.HintOf(err); hint != "" {
			a.Problem += " " + sentence(hint)
		}
		status = statuses[kind]
	}
	v.w.Header().Set("Content-Type", "application/json")
	v.w.WriteHeader(status)
	return json.NewEncoder(v.w).Encode(a)
}

// said is what a script posted, as JSON: only such a body comes here, which no form of another site can make.
type said struct {
	Next     string          `json:"next"`
	Password string          `json:"password"`
	Label    string          `json:"label"`
	Response json.RawMessage `json:"response"`
}

func (v *visit) said() (said, error) {
	var s said
	if v.r.Header.Get("Content-Type") != "application/json" {
		return s, fault.New(fault.Invalid, "this is not JSON")
	}
	d := json.NewDecoder(io.LimitReader(v.r.Body, mostAnswer))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, fault.New(fault.Invalid, "what the browser sent could not be read").Because(err)
	}
	return s, nil
}

// passkeyBegin starts a sign-in by passkey, or the answer to a challenge where the password was given already.
func (p *Pages) passkeyBegin(v *visit) error {
	var options json.RawMessage
	var ticket auth.Ticket
	_, err := v.said()
	if err == nil {
		if challenge := p.challenge(v); challenge != "" {
			options, ticket, err = p.door.BeginPasskeyAnswer(v.r.Context(), challenge)
		} else {
			options, ticket, err = p.door.BeginPasskeySignIn(v.r.Context(), v.visitor())
		}
	}
	if err != nil {
		return v.respond(answer{}, err)
	}
	p.door.SetCookie(v.w, auth.CeremonyCookie, ticket)
	return v.respond(answer{Options: options}, nil)
}

// challenge is the challenge that the second step answers; "" in the first step.
func (p *Pages) challenge(v *visit) string {
	if v.r.PathValue("step") != "second" {
		return ""
	}
	return p.door.ReadCookie(v.r, auth.ChallengeCookie)
}

func (p *Pages) passkeyFinish(v *visit) error {
	s, err := v.said()
	if err != nil {
		return v.respond(answer{}, err)
	}
	ceremony := p.door.ReadCookie(v.r, auth.CeremonyCookie)
	p.door.ClearCookie(v.w, auth.CeremonyCookie)
	var out auth.Outcome
	if challenge := p.challenge(v); challenge != "" {
		out, err = p.door.CompletePasskey(v.r.Context(), challenge, ceremony, s.Response, v.visitor())
	} else {
		out, err = p.door.FinishPasskeySignIn(v.r.Context(), ceremony, s.Response, v.visitor())
	}
	if err != nil {
		if record := v.refused(out, "passkey", err); record != nil {
			err = record
		}
		return v.respond(answer{}, err)
	}
	path, err := v.proceed(out, localPath(s.Next))
	return v.respond(answer{Location: path}, err)
}

func (p *Pages) addPasskeyBegin(v *visit) error {
	s, err := v.said()
	if err != nil {
		return v.respond(answer{}, err)
	}
	options, ticket, err := p.door.BeginPasskey(v.r.Context(), v.principal, s.Password)
	if err != nil {
		return v.respond(answer{}, err)
	}
	p.door.SetCookie(v.w, auth.CeremonyCookie, ticket)
	return v.respond(answer{Options: options}, nil)
}

func (p *Pages) addPasskeyFinish(v *visit) error {
	s, err := v.said()
	if err != nil {
		return v.respond(answer{}, err)
	}
	ceremony := p.door.ReadCookie(v.r, auth.CeremonyCookie)
	p.door.ClearCookie(v.w, auth.CeremonyCookie)
	_, codes, err := p.door.FinishPasskey(v.r.Context(), v.principal, ceremony, s.Label, s.Response)
	return v.respond(answer{Location: "/account?done=passkey-added", Codes: codes}, err)
}
