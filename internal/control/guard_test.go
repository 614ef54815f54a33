package control

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// operations says what each operation needs. A method of Service that takes an Actor and is not in here fails the test.
func operations() map[string][]Permission {
	anyone := []Permission{}
	return map[string][]Permission{
		"Me": anyone, "Sessions": anyone, "RevokeSession": anyone, "Tokens": anyone, "CreateToken": anyone, "RevokeToken": anyone, "ChangeAccount": anyone, "Settings": anyone,
		"Tenants": {Operate}, "CreateTenant": {Operate}, "Health": {Operate},
		"Users": {ReadUsers}, "User": {ReadUsers}, "CreateUser": {WriteUsers}, "ChangeUser": {WriteUsers}, "ResetUser": {WriteUsers}, "DeleteUser": {WriteUsers},
		"ChangeSettings": {WriteSettings},
		"Agents":         {ReadAgents}, "Agent": {ReadAgents}, "CreateAgent": {WriteAgents}, "ChangeAgent": {WriteAgents}, "DeleteAgent": {WriteAgents},
		"EffectivePolicy": {ReadPolicies},
		"Policies":        {ReadPolicies}, "Policy": {ReadPolicies}, "CreatePolicy": {WritePolicies}, "ChangePolicy": {WritePolicies}, "DeletePolicy": {WritePolicies},
		"PolicyVersions": {ReadPolicies}, "PolicyVersion": {ReadPolicies}, "DiffPolicy": {ReadPolicies}, "CheckPolicy": {ReadPolicies}, "Explain": {ReadPolicies},
		"Replay":      {ReadPolicies, ReadAudit},
		"Credentials": {ReadCredentials}, "Credential": {ReadCredentials}, "CreateCredential": {WriteCredentials}, "RotateCredential": {WriteCredentials},
		"DeleteCredential": {WriteCredentials},
		"Upstreams":        {ReadPolicies}, "CreateUpstream": {WritePolicies}, "ChangeUpstream": {WritePolicies}, "DeleteUpstream": {WritePolicies},
		"Profiles": {ReadPolicies}, "CreateProfile": {WritePolicies}, "ChangeProfile": {WritePolicies}, "DeleteProfile": {WritePolicies},
		"Sandboxes": {ReadSandboxes}, "Sandbox": {ReadSandboxes}, "CreateSandbox": {WriteSandboxes}, "StopSandbox": {WriteSandboxes}, "ExtendSandbox": {WriteSandboxes},
		"PauseSandbox": {WriteSandboxes}, "ResumeSandbox": {WriteSandboxes},
		"Output": {ReadSandboxes}, "Exec": {WriteSandboxes}, "ExecWait": {WriteSandboxes}, "Runs": {ReadSandboxes},
		"Files": {ReadSandboxes}, "ReadFile": {ReadSandboxes}, "WriteFile": {WriteSandboxes}, "Trace": {ReadSandboxes},
		"Workspaces": {ReadSandboxes}, "Workspace": {ReadSandboxes}, "CreateWorkspace": {WriteSandboxes}, "DeleteWorkspace": {WriteSandboxes},
		"Audit": {ReadAudit}, "ExportAudit": {ReadAudit}, "Queries": {ReadAudit}, "SaveQuery": {ReadAudit}, "DeleteQuery": {ReadAudit},
		"Events": anyone, "Counts": anyone,
		"Denials": {ReadReview}, "Denial": {ReadReview}, "DecideDenial": {DecideReview}, "Approvals": {ReadReview}, "Approval": {ReadReview}, "DecideApproval": {DecideReview},
		"Rules": {ReadReview}, "ApproveRule": {DecideReview}, "RevokeRule": {DecideReview}, "CheckRule": {ReadReview},
	}
}

// roleHas is the table of roles, written out once more.
func roleHas(role api.Role, p Permission) bool {
	has := map[api.Role]string{
		api.Viewer:        "sandboxes:read agents:read policies:read credentials:read review:read audit:read users:read",
		api.Developer:     "sandboxes:read agents:read policies:read credentials:read review:read audit:read users:read sandboxes:write",
		api.Reviewer:      "sandboxes:read agents:read policies:read credentials:read review:read audit:read users:read review:decide",
		api.Administrator: "sandboxes:read sandboxes:write agents:read agents:write policies:read policies:write credentials:read credentials:write review:read review:decide audit:read users:read users:write settings:write",
	}
	return slices.Contains(strings.Fields(has[role]), string(p))
}

func TestPermissions(t *testing.T) {
	for _, role := range append(api.Roles(), "", "root") {
		for _, p := range append(Permissions(), "", "everything") {
			a := Actor{Tenant: "t", User: "u", Role: role, Via: "session", ID: "s"}
			if got, want := may(a, p) == nil, roleHas(role, p); got != want {
				t.Errorf("%s %s: %t, want %t", role, p, got, want)
			}
			a.Operator = true
			if got, want := may(a, p) == nil, roleHas(role, p) || p == Operate && slices.Contains(api.Roles(), role); got != want {
				t.Errorf("operator, %s %s: %t, want %t", role, p, got, want)
			}
			a.Scopes = []string{}
			wantsKind(t, may(a, p), fault.Denied, fault.Unauthenticated)
			a.Scopes = []string{string(ReadAgents), string(Operate)}
			if got, want := may(a, p) == nil, p == ReadAgents && roleHas(role, p) || p == Operate && slices.Contains(api.Roles(), role); got != want {
				t.Errorf("scoped, %s %s: %t, want %t", role, p, got, want)
			}
		}
	}
	says(t, may(Actor{Tenant: "t", User: "u", Role: api.Developer, Via: "session", ID: "s"}, WriteAgents), fault.Denied, "your role, developer, does not allow this")
}

func wantsKind(t *testing.T, err error, kinds ...fault.Kind) {
	t.Helper()
	if err == nil || !slices.Contains(kinds, fault.KindOf(err)) {
		t.Errorf("got %v, want one of the kinds %v", err, kinds)
	}
}

func TestKnown(t *testing.T) {
	good := Actor{Tenant: "t", User: "u", Role: api.Viewer, Via: "token", ID: "x"}
	done(t, known(good))
	for name, spoil := range map[string]func(*Actor){
		"nobody": func(a *Actor) { *a = Actor{} }, "no tenant": func(a *Actor) { a.Tenant = "" }, "every tenant": func(a *Actor) { a.Tenant = store.AnyTenant },
		"no user": func(a *Actor) { a.User = "" }, "no role": func(a *Actor) { a.Role = "" }, "no way in": func(a *Actor) { a.Via = "" }, "no session": func(a *Actor) { a.ID = "" },
	} {
		a := good
		spoil(&a)
		if fault.KindOf(known(a)) != fault.Unauthenticated || fault.KindOf(may(a, ReadAgents)) != fault.Unauthenticated {
			t.Errorf("%s is known", name)
		}
	}
}

// TestOperations calls every operation as every role: what the table denies is Denied, and what it allows is not.
func TestOperations(t *testing.T) {
	s := newStage(t)
	service, table := reflect.ValueOf(s.Service), operations()
	for i := range service.NumMethod() {
		method := service.Type().Method(i)
		kind := method.Func.Type()
		if kind.NumIn() < 3 || kind.In(2) != reflect.TypeFor[Actor]() {
			continue
		}
		needs, known := table[method.Name]
		if !known {
			t.Errorf("the operation %s is not in the table", method.Name)
			continue
		}
		delete(table, method.Name)
		for _, role := range api.Roles() {
			allowed := !slices.ContainsFunc(needs, func(p Permission) bool { return !roleHas(role, p) })
			err := s.call(service.Method(i), s.a[role])
			if denied := fault.KindOf(err) == fault.Denied; err != nil && denied == allowed || err == nil && !allowed {
				t.Errorf("%s as %s: %v, allowed by the table: %t", method.Name, role, err, allowed)
			}
		}
		if err := s.call(service.Method(i), Actor{}); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%s as nobody: %v", method.Name, err)
		}
		narrow := s.admin()
		narrow.Via, narrow.Scopes = "token", []string{}
		if err := s.call(service.Method(i), narrow); len(needs) > 0 && fault.KindOf(err) != fault.Denied {
			t.Errorf("%s with a token without scopes: %v", method.Name, err)
		}
	}
	for name := range table {
		t.Errorf("there is no operation %s", name)
	}
}

// call calls an operation with empty arguments and returns its error.
func (s *stage) call(method reflect.Value, a Actor) error {
	ctx, stop := context.WithTimeout(s.t.Context(), 100*time.Millisecond)
	defer stop()
	args := []reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(a)}
	for i := 2; i < method.Type().NumIn(); i++ {
		in := method.Type().In(i)
		if in.Kind() == reflect.Func {
			args = append(args, reflect.MakeFunc(in, func([]reflect.Value) []reflect.Value { return []reflect.Value{reflect.Zero(in.Out(0))} }))
			continue
		}
		args = append(args, reflect.Zero(in))
	}
	out := method.Call(args)
	err, _ := out[len(out)-1].Interface().(error)
	return err
}

func TestParseName(t *testing.T) {
	for _, name := range []string{"a", "0", "build-agent", "v1.2", strings.Repeat("a", 63)} {
		if got, err := ParseName(name); err != nil || got != name {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "A", "-a", ".a", "..", "a b", "a/b", "a_b", "ä", "a\n", "a\x00", strings.Repeat("a", 64)} {
		if _, err := ParseName(name); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q is a name", name)
		}
	}
}

func TestPages(t *testing.T) {
	for _, p := range []Page{{Limit: -1}, {Limit: 501}, {Search: strings.Repeat("a", 201)}} {
		if _, err := p.filter(); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v is a page", p)
		}
	}
	if f, err := (Page{}).filter(); err != nil || f.Limit != 50 {
		t.Errorf("%+v %v", f, err)
	}
}
