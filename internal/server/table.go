package server

import (
	"context"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
)

// access says who may call an operation at all. Its zero value asks for a sign-in.
type access uint8

const (
	signedIn access = iota
	anyone          // those by which one signs in
)

// keeping says whether an answer may be kept for a request that comes again with the same Idempotency-Key. Its zero value keeps it.
type keeping uint8

const (
	kept    keeping = iota
	once            // the answer shows a secret that is stored nowhere else: a repeated request learns that it was done, no more
	unkeyed         // the operation takes no Idempotency-Key
)

// precondition says whether a change must name the version that it is a change of.
type precondition uint8

const (
	noVersion       precondition = iota
	versionOptional              // without one, the last change wins
	versionNeeded                // two people's changes must not undo each other unseen
	versionFromNone              // the same, where what is changed may not be stored yet, which is version 0
)

// operation is one line of the table of the API.
type operation struct {
	method, path string // below prefix
	id           string // stable: clients are generated from it
	summary      string
	needs        control.Permission // none: whoever is signed in
	too          control.Permission // as well
	access       access
	keeping      keeping
	version      precondition
	status       int // of success
	// Exactly one of these: a typed operation, which huma parses and writes, or one that has the request for itself.
	typed  func(s *Server, table huma.API, described huma.Operation)
	stream func(w http.ResponseWriter, r *http.Request, c *call) error
	// What a stream takes and gives, for the document.
	params []param
	takes  string // media type
	gives  string
}

// param is a parameter of a stream.
type param struct{ name, in, kind, about string }

// What typed operations get besides parameters of their own. ByID and Pages are exported since huma finds no others inside structs.
type (
	noInput struct{}
	ByID    struct {
		ID string `path:"id" maxLength:"100" doc:"identifier"`
	}
	Pages struct {
		Limit  int    `query:"limit" minimum:"1" maximum:"500" doc:"how many; 50 if left out"`
		After  string `query:"after" maxLength:"1000" doc:"cursor: the member next of the page before"`
		Search string `query:"search" maxLength:"200" doc:"part of a name"`
	}
	body[T any] struct {
		Body T
	}
	change[T any] struct {
		ByID
		Body T
	}
)

func (p Pages) page() control.Page {
	return control.Page{Limit: p.Limit, After: p.After, Search: p.Search}
}

// output is what a typed operation answers with.
type output[O any] struct {
	Status int
	ETag   string `header:"ETag"`
	Body   O
}

// op makes a line whose operation answers with a document.
func op[I, O any](method, path, id, summary string, needs control.Permission, do func(ctx context.Context, c *call, in *I) (O, error)) operation {
	o := operation{method: method, path: path, id: id, summary: summary, needs: needs, status: http.StatusOK}
	o.typed = func(s *Server, table huma.API, described huma.Operation) {
		huma.Register(table, described, func(ctx context.Context, in *I) (*output[O], error) {
			c := callOf(ctx)
			out, err := do(ctx, c, in)
			if err != nil {
				return nil, s.problem(ctx, err)
			}
			answer := &output[O]{Status: described.DefaultStatus, Body: out}
			if answer.ETag, err = tag(out); err != nil {
				return nil, s.problem(ctx, err)
			}
			if described.Method == http.MethodGet && matches(c.request.Header, answer.ETag) {
				answer.Status = http.StatusNotModified
			}
			return answer, nil
		})
	}
	return o
}

// act makes a line whose operation answers with nothing.
func act[I any](method, path, id, summary string, needs control.Permission, do func(ctx context.Context, c *call, in *I) error) operation {
	o := operation{method: method, path: path, id: id, summary: summary, needs: needs, status: http.StatusNoContent}
	o.typed = func(s *Server, table huma.API, described huma.Operation) {
		huma.Register(table, described, func(ctx context.Context, in *I) (*struct{}, error) {
			if err := do(ctx, callOf(ctx), in); err != nil {
				return nil, s.problem(ctx, err)
			}
			return nil, nil
		})
	}
	return o
}

// raw makes a line whose operation has the request for itself: for what does not fit in memory or does not end by itself.
func raw(method, path, id, summary string, needs control.Permission, do func(http.ResponseWriter, *http.Request, *call) error) operation {
	return operation{method: method, path: path, id: id, summary: summary, needs: needs, status: http.StatusOK, stream: do, keeping: unkeyed}
}

func (o operation) making() operation                  { o.status = http.StatusCreated; return o }
func (o operation) public() operation                  { o.access, o.keeping = anyone, unkeyed; return o }
func (o operation) showing() operation                 { o.keeping = once; return o }
func (o operation) without() operation                 { o.keeping = unkeyed; return o }
func (o operation) versioned(p precondition) operation { o.version = p; return o }
func (o operation) with(params ...param) operation     { o.params = params; return o }
func (o operation) media(takes, gives string) operation {
	o.takes, o.gives = takes, gives
	return o
}

func (o operation) and(p control.Permission) operation { o.too = p; return o }

// pattern is the line's pattern for http.ServeMux.
func (o operation) pattern() string { return o.method + " " + prefix + o.path }

// most is how large a request may be. Who has not said who they are does not fill our memory.
func (o *operation) most() int64 {
	if o.access == anyone {
		return maxStranger
	}
	return maxBody
}

// group is the first part of the path, by which the document sorts operations.
func (o operation) group() string {
	first, _, _ := strings.Cut(strings.TrimPrefix(o.path, "/"), "/")
	return first
}

// table is the whole API.
func (s *Server) table() []operation {
	var all []operation
	for _, part := range [][]operation{
		s.signInOperations(), s.accountOperations(), s.protectionOperations(), s.peopleOperations(), s.agentOperations(), s.policyOperations(), s.sandboxOperations(), s.fileOperations(), s.credentialOperations(),
		s.gitOperations(), s.reviewOperations(), s.auditOperations(),
	} {
		all = append(all, part...)
	}
	return all
}

// listed makes a list of a nil one, so that clients always get an array.
func listed[T any](p api.Page[T], err error) (api.Page[T], error) {
	if p.Items == nil {
		p.Items = []T{}
	}
	return p, err
}

// whole is a list that has one page.
func whole[T any](items []T, err error) (api.Page[T], error) {
	return listed(api.Page[T]{Items: items}, err)
}
