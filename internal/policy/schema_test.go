package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// validator checks documents against the part of JSON Schema 2020-12 that schema.json uses, and fails on keywords beyond it.
type validator struct {
	t    *testing.T
	root map[string]any
}

func newValidator(t *testing.T) *validator {
	v := &validator{t: t}
	if err := json.Unmarshal(Schema(), &v.root); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *validator) accepts(text string) error {
	var document any
	if err := yaml.Load([]byte(text), &document); err != nil {
		return err
	}
	encoded, err := json.Marshal(document) // numbers become what JSON knows
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	if err := decoder.Decode(&document); err != nil {
		return err
	}
	return v.check(v.root, document)
}

func (v *validator) check(schema any, value any) error {
	if accept, ok := schema.(bool); ok {
		if accept {
			return nil
		}
		return errors.New("is not allowed")
	}
	for keyword, argument := range schema.(map[string]any) {
		if err := v.keyword(keyword, argument, schema.(map[string]any), value); err != nil {
			return err
		}
	}
	return nil
}

func (v *validator) keyword(keyword string, argument any, schema map[string]any, value any) error {
	object, isObject := value.(map[string]any)
	array, _ := value.([]any)
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%v: %s: %s", value, keyword, fmt.Sprintf(format, args...))
	}
	switch keyword {
	case "$schema", "$id", "$defs", "title", "description", "then":
	case "$ref":
		return v.check(v.root["$defs"].(map[string]any)[strings.TrimPrefix(argument.(string), "#/$defs/")], value)
	case "items":
		return v.all(argument, array)
	case "allOf":
		for _, sub := range argument.([]any) {
			if err := v.check(sub, value); err != nil {
				return err
			}
		}
	case "anyOf":
		if !slices.ContainsFunc(argument.([]any), func(sub any) bool { return v.check(sub, value) == nil }) {
			return fail("none")
		}
	case "oneOf":
		match := func(sub any) bool { return v.check(sub, value) == nil }
		if first := slices.IndexFunc(argument.([]any), match); first < 0 || slices.ContainsFunc(argument.([]any)[first+1:], match) {
			return fail("not one")
		}
	case "if":
		if v.check(argument, value) == nil {
			return v.check(schema["then"], value)
		}
	case "required":
		for _, key := range argument.([]any) {
			if _, ok := object[key.(string)]; isObject && !ok {
				return fail("%v", key)
			}
		}
	case "properties":
		for key, sub := range argument.(map[string]any) {
			if member, ok := object[key]; ok {
				if err := v.check(sub, member); err != nil {
					return err
				}
			}
		}
	case "additionalProperties":
		known, _ := schema["properties"].(map[string]any)
		for key, member := range object {
			if _, ok := known[key]; !ok && v.check(argument, member) != nil {
				return fail("%s", key)
			}
		}
	case "propertyNames":
		return v.all(argument, slices.Collect(func(yield func(any) bool) {
			for key := range object {
				if !yield(key) {
					return
				}
			}
		}))
	default:
		if !v.scalar(keyword, argument, value) {
			return fail("%v", argument)
		}
	}
	return nil
}

func (v *validator) all(schema any, values []any) error {
	for _, value := range values {
		if err := v.check(schema, value); err != nil {
			return err
		}
	}
	return nil
}

// scalar checks the keywords that look at one value alone. They hold for values of other types.
func (v *validator) scalar(keyword string, argument any, value any) bool {
	array, _ := value.([]any)
	object, _ := value.(map[string]any)
	text, isText := value.(string)
	digits, isNumber := value.(json.Number)
	number, _ := digits.Float64()
	limit, _ := argument.(float64)
	switch keyword {
	case "type":
		types, ok := argument.([]any)
		if !ok {
			types = []any{argument}
		}
		return slices.ContainsFunc(types, func(name any) bool { return hasType(name.(string), value) })
	case "const":
		return fmt.Sprint(argument) == fmt.Sprint(value) && isText == hasType("string", argument)
	case "enum":
		return slices.ContainsFunc(argument.([]any), func(a any) bool { return a == value })
	case "minimum":
		return !isNumber || number >= limit
	case "maximum":
		return !isNumber || number <= limit
	case "minLength":
		return !isText || utf8.RuneCountInString(text) >= int(limit)
	case "maxLength":
		return utf8.RuneCountInString(text) <= int(limit)
	case "minItems":
		return array == nil || len(array) >= int(limit)
	case "maxItems":
		return len(array) <= int(limit)
	case "maxProperties":
		return len(object) <= int(limit)
	case "pattern":
		return !isText || regexp.MustCompile(argument.(string)).MatchString(text)
	case "uniqueItems":
		return !slices.ContainsFunc(array, func(e any) bool { return slices.Index(array, e) != len(array)-1-slices.Index(reversed(array), e) })
	}
	v.t.Fatalf("the schema uses %s, which this test cannot check", keyword)
	return false
}

func reversed(values []any) []any {
	r := slices.Clone(values)
	slices.Reverse(r)
	return r
}

func hasType(name string, value any) bool {
	switch value := value.(type) {
	case nil:
		return name == "null"
	case bool:
		return name == "boolean"
	case string:
		return name == "string"
	case json.Number, float64:
		return name == "number" || name == "integer" && !strings.ContainsAny(fmt.Sprint(value), ".eE")
	case []any:
		return name == "array"
	}
	return name == "object"
}

func correct() map[string]string {
	return map[string]string{
		"complete": complete, "sample": sample, "least": "version: 1\n", "nulls": "version: 1\negress:\nmounts:\nenvironment:\nresources:\nworkspace:\nisolation:\n",
		"inner nulls": "version: 1\negress: {networks: , rules: }\nworkspace: {unprotected: }\n", "flow": "{version: 1, egress: {rules: [{hosts: [a.example]}]}}\n",
		"crlf": "version: 1\r\negress:\r\n  default: ask\r\n", "bom": "\ufeffversion: 1\n", "end": "version: 1\n...\n",
		"sizes":         "version: 1\nresources: {memory: 64m, disk: 1t, cpus: 0.25, timeout: 1h30m}\n",
		"bytes":         "version: 1\nresources: {memory: 1073741824}\n",
		"deny all":      "version: 1\negress: {rules: [{hosts: [a.example], verdict: deny}, {networks: [8.8.8.0/24], verdict: deny}]}\n",
		"deny tcp":      "version: 1\negress: {rules: [{hosts: [a.example], verdict: deny, protocol: tcp}]}\n",
		"single":        "version: 1\negress: {networks: [\"fd00:ec2::254\", 192.168.1.0/24], rules: [{hosts: [mirror, _x._tcp.a.example]}]}\n",
		"requests":      "version: 1\negress: {rules: [{hosts: [a.example], methods: [GET, M-SEARCH], paths: [/, /a/, \"/@s%2F\"], tls: inspect}, {hosts: [b.example], tls: tunnel, verdict: ask}, {hosts: [a.example], methods: [DELETE], verdict: deny}]}\n",
		"credentials":   "version: 1\ncredentials:\n  - {use: github-main, hosts: [api.example.com, \"*.example.org\"], ports: [443, 8443], paths: [/repos/acme/], methods: [GET, POST], header: authorization, env: GITHUB_TOKEN}\n  - {use: b, hosts: [b.example]}\n",
		"tunnel beside": "version: 1\negress: {rules: [{hosts: [a.example], ports: [8443], tls: tunnel}]}\ncredentials: [{use: a, hosts: [a.example]}]\n",
		"git":           gitSample, "git closing": gitUpstreamText, "git nulls": "version: 1\ngit: {upstreams: , profiles: , repositories: }\n", "no git": "version: 1\ngit:\n",
		"git all":        "version: 1\ngit:\n  upstreams:\n    - {name: a-1, type: azure, url: \"https://a.example:8443/base/x\", credential: c, api: {url: \"https://b.example/x\", credential: d}, lfs-hosts: [\"*.blob.example.com\", x.example]}\n  profiles:\n    - {name: p, access: write, rules: [{branches: [\"**\"], tags: [v*], refs: [\"refs/notes/*\"], allow: [create, update, force, delete]}, {branches: [é], propose: pull-request}], push-options: [a, \"b=*\"], protected-files: [], proposals: \"p/{id}\", max-push: 64KiB, max-refs: 1000}\n  repositories:\n    - {upstream: a-1, repository: org/project/_git/repo, profile: p}\n    - {upstream: a-1, matching: \"(?i)a.*\", profile: read}\n",
		"git bytes":      "version: 1\ngit: {profiles: [{name: a, access: write, rules: [{branches: [a], allow: []}], max-push: 65536, protected-files: [\"**/x/\", \"*.yml\"]}]}\n",
		"no credentials": "version: 1\ncredentials:\n",
		"description":    "version: 1\ndescription: |\n  two\n  lines\n",
	}
}

func TestSchemaAndParserAgree(t *testing.T) {
	v := newValidator(t)
	for name, text := range correct() {
		if _, err := Parse(name, []byte(text)); err != nil {
			t.Errorf("%s: the parser refuses it:\n%v", name, err)
		}
		if err := v.accepts(text); err != nil {
			t.Errorf("%s: the schema refuses it: %v", name, err)
		}
	}
	for name, m := range mistakes() {
		if err := v.accepts(m.text); err == nil && !m.loose {
			t.Errorf("%s: the schema accepts what the parser refuses:\n%s", name, m.text)
		}
	}
}

// TestSchemaHasEveryKey asks the parser for its keys, by giving it one it does not know in each section, and compares them with the schema's.
func TestSchemaHasEveryKey(t *testing.T) {
	v := newValidator(t)
	at := func(path ...string) map[string]any {
		schema := v.root
		for _, key := range path {
			schema = schema[key].(map[string]any)
		}
		return schema["properties"].(map[string]any)
	}
	for text, properties := range map[string]map[string]any{
		"%s: 1\nversion: 1\n":                      at(),
		"version: 1\nisolation: {%s: 1}\n":         at("properties", "isolation"),
		"version: 1\nresources: {%s: 1}\n":         at("properties", "resources"),
		"version: 1\nworkspace: {%s: 1}\n":         at("properties", "workspace"),
		"version: 1\nmounts: [{%s: 1}]\n":          at("properties", "mounts", "items"),
		"version: 1\negress: {%s: 1}\n":            at("properties", "egress"),
		"version: 1\negress: {rules: [{%s: 1}]}\n": at("$defs", "rule"),
		"version: 1\ncredentials: [{%s: 1}]\n":     at("$defs", "credential"),

		"version: 1\ngit: {%s: 1}\n":                          at("properties", "git"),
		"version: 1\ngit: {upstreams: [{%s: 1}]}\n":           at("$defs", "gitUpstream"),
		"version: 1\ngit: {upstreams: [{api: {%s: 1}}]}\n":    at("$defs", "gitUpstream", "properties", "api"),
		"version: 1\ngit: {profiles: [{%s: 1}]}\n":            at("$defs", "gitProfile"),
		"version: 1\ngit: {profiles: [{rules: [{%s: 1}]}]}\n": at("$defs", "gitRule"),
		"version: 1\ngit: {repositories: [{%s: 1}]}\n":        at("$defs", "gitRepository"),
	} {
		_, err := Parse("", fmt.Appendf(nil, text, "zzzzzzzzzzzz"))
		problems, ok := errors.AsType[*Problems](err)
		if !ok {
			t.Fatalf("%q: %v", text, err)
		}
		unknown := slices.IndexFunc(problems.List, func(p Problem) bool { return strings.HasPrefix(p.Message, "unknown key") })
		_, keys, _ := strings.Cut(problems.List[unknown].Remedy, "use one of: ")
		parser := slices.Sorted(slices.Values(strings.Split(keys, ", ")))
		if schema := slices.Sorted(maps.Keys(properties)); !slices.Equal(parser, schema) {
			t.Errorf("%q: the parser knows %v, the schema %v", text, parser, schema)
		}
	}
}
