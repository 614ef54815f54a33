package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/cofferdam/cofferdam/api"
)

// All that this package takes from huma is here and in op and act: it parses requests into typed input by the tags of Go structs, checks them against the
// schemas that it makes of the same, and describes both in OpenAPI. Errors, headers, bounds and identity are ours.

// document is the description of the API.
type document struct{ json, yaml []byte }

// guarded is the mux that huma registers its handlers with: each gets what stands before it.
type guarded struct {
	*http.ServeMux
	s  *Server
	by map[string]*operation // pattern
}

func (g guarded) HandleFunc(pattern string, handler func(http.ResponseWriter, *http.Request)) {
	o := g.by[pattern]
	g.ServeMux.Handle(pattern, g.s.guard(o, func(w http.ResponseWriter, r *http.Request, _ *call) error {
		handler(w, r)
		return nil
	}))
}

// install registers the table.
func (s *Server) install() error {
	s.mux = http.NewServeMux()
	s.operations = s.table()
	mux := guarded{s.mux, s, map[string]*operation{}}
	table := huma.NewAPI(s.humaConfig(), humago.NewAdapter(mux, prefix))
	problemSchema := table.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Problem](), true, "Problem")
	for i := range s.operations {
		o := &s.operations[i]
		if mux.by[o.pattern()] != nil {
			return fmt.Errorf("two operations are %s", o.pattern())
		}
		mux.by[o.pattern()] = o
		described := describe(o, problemSchema)
		if o.typed != nil {
			o.typed(s, table, described)
			continue
		}
		table.OpenAPI().AddOperation(&described)
		s.mux.Handle(o.pattern(), s.guard(o, o.stream))
	}
	delete(table.OpenAPI().Components.Schemas.Map(), "ErrorModel") // huma's own form of errors, which never goes out
	return s.describeAll(table.OpenAPI())
}

func (s *Server) humaConfig() huma.Config {
	format := huma.Format{Marshal: func(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }, Unmarshal: json.Unmarshal}
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Cofferdam", Version: "1",
				Description: "Untrusted programs run in throw-away sandboxes whose only way out is a gateway under policy. Errors are problem documents (RFC 9457) with a stable member code. " +
					"Lists come in pages. What can be changed has an ETag; changes name it in If-Match. A POST with an Idempotency-Key is carried out once within 24 hours.",
			},
			Servers: []*huma.Server{{URL: prefix}},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token":   {Type: "http", Scheme: "bearer", BearerFormat: "cfd_pat_…", Description: "An API token."},
					"session": {Type: "apiKey", In: "cookie", Name: "__Host-cofferdam", Description: "The cookie of a sign-in. Over plain HTTP on loopback its name is cofferdam."},
				},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": format, "json": format}, // the second is for what ends in +json
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{s.transform},
	}
}

// transform puts our problems in the place of huma's own errors.
func (s *Server) transform(ctx huma.Context, _ string, v any) (any, error) {
	if e, ok := v.(*huma.ErrorModel); ok {
		return s.problem(ctx.Context(), fromHuma(e)), nil
	}
	return v, nil
}

// fromHuma says no more of what is wrong with a request than which member it is: never the schema, never the value.
func fromHuma(e *huma.ErrorModel) error {
	r := &refusal{status: e.Status, code: codeValidation, detail: "the request is not valid", hint: "see the description of the API at " + prefix + "/openapi.json"}
	switch e.Status {
	case http.StatusUnsupportedMediaType:
		r.code, r.detail, r.hint = codeMedia, "the request is not JSON", "send Content-Type: application/json"
	case http.StatusRequestEntityTooLarge:
		r.code, r.detail, r.hint = codeTooLarge, "the request is too large", "send less than "+size(maxBody)
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		if len(e.Errors) > 0 {
			r.field = member(e.Errors[0])
		}
	default:
		return fmt.Errorf("huma: status %d: %s", e.Status, e.Detail)
	}
	return r
}

var (
	memberName    = regexp.MustCompile(`^[A-Za-z0-9_.\-\[\]]{1,100}$`)
	missingMember = regexp.MustCompile(`^expected required property (\w+) to be present$`)
)

// member is the dotted name of what is wrong, as the client wrote it; "" if it is no name that we could have given.
func member(e *huma.ErrorDetail) string {
	_, name, _ := strings.Cut(e.Location, ".")
	if missing := missingMember.FindStringSubmatch(e.Message); missing != nil { // of the object that Location names
		name = strings.TrimPrefix(name+"."+missing[1], ".")
	}
	return named(name)
}

func named(name string) string {
	if !memberName.MatchString(name) {
		return ""
	}
	return name
}

// describe is what the document says of a line.
func describe(o *operation, problemSchema *huma.Schema) huma.Operation {
	d := huma.Operation{
		Method: o.method, Path: o.path, OperationID: o.id, Summary: o.summary, Tags: []string{o.group()}, DefaultStatus: o.status,
		MaxBodyBytes: maxBody + 1, BodyReadTimeout: -1, // both were seen to before huma gets the request
		Responses: map[string]*huma.Response{
			"default":              {Description: "A problem", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: problemSchema}}},
			strconv.Itoa(o.status): {Description: http.StatusText(o.status)},
		},
		Security: []map[string][]string{{"token": {}}, {"session": {}}}, Extensions: map[string]any{},
	}
	if o.access == anyone {
		d.Security = []map[string][]string{}
	}
	if o.needs != "" {
		d.Extensions["x-permission"] = strings.TrimSpace(string(o.needs) + " " + string(o.too))
	}
	params := o.params
	if o.method == http.MethodPost && o.keeping != unkeyed {
		params = append(params, param{"Idempotency-Key", "header", "string", "a key of your own: within 24 hours the request is carried out once, and its answer given again"})
	}
	if o.version != noVersion {
		params = append(params, param{"If-Match", "header", "string", "the ETag of what is changed"})
	}
	for _, p := range params {
		required := p.in == "path" || p.name == "If-Match" && o.version >= versionNeeded
		d.Parameters = append(d.Parameters, &huma.Param{Name: p.name, In: p.in, Description: p.about, Required: required, Schema: &huma.Schema{Type: p.kind}})
	}
	if o.takes != "" {
		d.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{o.takes: {}}}
	}
	if o.gives != "" {
		d.Responses[strconv.Itoa(o.status)].Content = map[string]*huma.MediaType{o.gives: {}}
	}
	return d
}

// describeAll writes the document down, once: it does not change while the server runs.
func (s *Server) describeAll(d *huma.OpenAPI) error {
	text, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("describe the API: %w", err)
	}
	var pretty any
	if err := json.Unmarshal(text, &pretty); err != nil {
		return fmt.Errorf("describe the API: %w", err)
	}
	if s.document.json, err = json.MarshalIndent(pretty, "", "  "); err != nil { // sorted, so that it can be compared
		return fmt.Errorf("describe the API: %w", err)
	}
	s.document.json = append(s.document.json, '\n')
	if s.document.yaml, err = d.YAML(); err != nil {
		return fmt.Errorf("describe the API: %w", err)
	}
	return nil
}
