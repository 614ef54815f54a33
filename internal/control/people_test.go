package control

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestUsers(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	i := must[api.Invitation](t)(s.CreateUser(ctx, s.admin(), api.NewUser{Email: " New@Acme.example ", Name: "New", Role: api.Developer}))
	if i.User.Email != "new@acme.example" || !strings.HasPrefix(i.Link, "http://localhost:8080/") {
		t.Errorf("%+v", i)
	}
	_, err := s.CreateUser(ctx, s.other(), api.NewUser{Email: "new@acme.example", Role: api.Viewer})
	wants(t, err, fault.Conflict)
	for _, bad := range []api.NewUser{{}, {Email: "x", Role: api.Viewer}, {Email: "a@b.example"}, {Email: "a@b.example", Role: "root"}, {Email: "a@b.example", Role: api.Viewer, Name: "\x1b"}} {
		if _, err := s.CreateUser(ctx, s.admin(), bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	list := must[api.Page[api.User]](t)(s.Users(ctx, s.a[api.Viewer], Page{}))
	if len(list.Items) != 5 {
		t.Errorf("%d users", len(list.Items))
	}
	role, yes := api.Reviewer, true
	u := must[api.User](t)(s.ChangeUser(ctx, s.admin(), i.User.ID, i.User.Version, api.UserChange{Role: &role}))
	if u.Role != api.Reviewer {
		t.Errorf("%+v", u)
	}
	_, err = s.ChangeUser(ctx, s.admin(), i.User.ID, i.User.Version, api.UserChange{Role: &role})
	wants(t, err, fault.Conflict)
	reset := must[api.Invitation](t)(s.ResetUser(ctx, s.admin(), i.User.ID))
	if reset.Link == i.Link {
		t.Error("the link is the same")
	}
	must[api.User](t)(s.ChangeUser(ctx, s.admin(), i.User.ID, 0, api.UserChange{Disabled: &yes}))
	_, err = s.ResetUser(ctx, s.admin(), i.User.ID)
	says(t, err, fault.Conflict, "disabled")
	done(t, s.DeleteUser(ctx, s.admin(), i.User.ID))
	_, err = s.User(ctx, s.admin(), i.User.ID)
	says(t, err, fault.NotFound, "no such user")

	me := must[api.Me](t)(s.Me(ctx, s.a[api.Reviewer]))
	if me.User.ID != s.a[api.Reviewer].User || me.Tenant.ID != s.admin().Tenant || !slices.Contains(me.Scopes, "review:decide") || slices.Contains(me.Scopes, "agents:write") {
		t.Errorf("%+v", me)
	}
	text := ""
	for _, e := range s.records(audit.UserChanged) {
		text += e.Detail + "\n"
		if e.Tenant != s.admin().Tenant && e.Tenant != s.other().Tenant {
			t.Errorf("%+v", e)
		}
	}
	if strings.Contains(text, strings.Split(i.Link, "token=")[1]) || !strings.Contains(text, "now reviewer") || !strings.Contains(text, "disabled") {
		t.Errorf("on record: %s", text)
	}
}

// TestOperatorIsOutOfReach: an administrator of the operator's tenant who is none gets neither the operator's account nor rid of it.
func TestOperatorIsOutOfReach(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	boss := must[api.Invitation](t)(s.CreateUser(ctx, s.admin(), api.NewUser{Email: "boss@acme.example", Role: api.Administrator})).User
	done(t, s.Auth.SetOperator(ctx, s.admin().Tenant, boss.ID, true))
	viewer, yes, name := api.Viewer, true, "Boss"
	acts := map[string]func(a Actor) error{
		"reset": func(a Actor) error { _, err := s.ResetUser(ctx, a, boss.ID); return err },
		"demote": func(a Actor) error {
			_, err := s.ChangeUser(ctx, a, boss.ID, 0, api.UserChange{Role: &viewer})
			return err
		},
		"disable": func(a Actor) error {
			_, err := s.ChangeUser(ctx, a, boss.ID, 0, api.UserChange{Disabled: &yes})
			return err
		},
		"delete": func(a Actor) error { return s.DeleteUser(ctx, a, boss.ID) },
	}
	for what, act := range acts {
		if err := act(s.admin()); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.HintOf(err), "operator") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if u := must[api.User](t)(s.User(ctx, s.admin(), boss.ID)); u.Role != api.Administrator || u.Disabled || !u.Operator {
		t.Errorf("%+v", u)
	}
	same, no := boss.Role, false // a page sends the whole form
	if u := must[api.User](t)(s.ChangeUser(ctx, s.admin(), boss.ID, 0, api.UserChange{Name: &name, Role: &same, Disabled: &no})); u.Name != name {
		t.Errorf("%+v", u)
	}
	op := s.admin()
	op.Operator = true
	done(t, acts["reset"](op))
	done(t, acts["demote"](op))
}

// TestTokenMakesNobody: a token with users:write, the whole of an administrator's, gives nobody more than it can do itself, its owner least of all.
func TestTokenMakesNobody(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	token := s.admin()
	token.Via, token.ID, token.Scopes = "token", "t", []string{"users:read", "users:write"}
	dev, admin, yes, no := s.a[api.Developer].User, api.Administrator, true, false
	for what, act := range map[string]func() error{
		"invite": func() error {
			_, err := s.CreateUser(ctx, token, api.NewUser{Email: "x@acme.example", Role: api.Viewer})
			return err
		},
		"its own owner": func() error { _, err := s.ResetUser(ctx, token, token.User); return err },
		"another":       func() error { _, err := s.ResetUser(ctx, token, dev); return err },
		"raise":         func() error { _, err := s.ChangeUser(ctx, token, dev, 0, api.UserChange{Role: &admin}); return err },
		"delete":        func() error { return s.DeleteUser(ctx, token, dev) },
	} {
		if err := act(); fault.KindOf(err) != fault.Denied || !strings.Contains(fault.Public(err), "token") {
			t.Errorf("%s: %v", what, err)
		}
	}
	must[api.User](t)(s.ChangeUser(ctx, token, dev, 0, api.UserChange{Disabled: &yes})) // what only takes away, it may
	_, err := s.ChangeUser(ctx, token, dev, 0, api.UserChange{Disabled: &no})
	says(t, err, fault.Denied, "token")
}

// TestResetEndsTokens: a reset takes the account back from whoever has a token of it.
func TestResetEndsTokens(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	dev := s.a[api.Developer]
	made := must[api.Token](t)(s.CreateToken(ctx, dev, api.NewToken{Name: "ci", Scopes: []string{"sandboxes:read"}}))
	must[api.Invitation](t)(s.ResetUser(ctx, s.admin(), dev.User))
	_, err := s.Auth.Token(ctx, made.Secret)
	wants(t, err, fault.Unauthenticated)
}

// TestLastAdministrator: nobody can take the last administrator away, neither at once nor two at a time.
func TestLastAdministrator(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	viewer, yes := api.Viewer, true
	last := func(err error) { t.Helper(); says(t, err, fault.Conflict, "last administrator") }
	_, err := s.ChangeUser(ctx, s.admin(), s.admin().User, 0, api.UserChange{Role: &viewer})
	last(err)
	_, err = s.ChangeUser(ctx, s.admin(), s.admin().User, 0, api.UserChange{Disabled: &yes})
	last(err)
	last(s.DeleteUser(ctx, s.admin(), s.admin().User))
	second := must[api.Invitation](t)(s.CreateUser(ctx, s.admin(), api.NewUser{Email: "two@acme.example", Role: api.Administrator})).User.ID
	var wg sync.WaitGroup
	for _, id := range []string{second, s.admin().User} {
		wg.Go(func() { _, _ = s.ChangeUser(ctx, s.admin(), id, 0, api.UserChange{Role: &viewer}) }) // one of them fails
	}
	wg.Wait()
	admins := 0
	for _, u := range must[api.Page[api.User]](t)(s.Users(ctx, s.admin(), Page{})).Items {
		if u.Role == api.Administrator {
			admins++
		}
	}
	if admins != 1 {
		t.Errorf("%d administrators", admins)
	}
}

func TestTenants(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	_, _, err := s.CreateTenant(ctx, s.admin(), "initech", "admin@initech.example")
	says(t, err, fault.Denied, "operator")
	op := s.admin()
	op.Operator = true
	made, i, err := s.CreateTenant(ctx, op, " initech ", "admin@initech.example")
	done(t, err)
	if made.Name != "initech" || i.User.Role != api.Administrator {
		t.Errorf("%+v %+v", made, i)
	}
	if u, err := s.Auth.GetUser(ctx, made.ID, i.User.ID); err != nil || u.Email != "admin@initech.example" {
		t.Errorf("%+v %v", u, err)
	}
	_, _, err = s.CreateTenant(ctx, op, "initech", "other@initech.example")
	says(t, err, fault.Conflict, "of that name")
	before := len(must[api.Page[api.Tenant]](t)(s.Tenants(ctx, op, Page{})).Items)
	_, _, err = s.CreateTenant(ctx, op, "hooli", s.other().Name) // the address is taken elsewhere: nothing is left behind
	wants(t, err, fault.Conflict)
	for _, bad := range []string{"", "  ", "a\nb", strings.Repeat("a", 101)} {
		if _, _, err := s.CreateTenant(ctx, op, bad, "x@y.example"); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if after := len(must[api.Page[api.Tenant]](t)(s.Tenants(ctx, op, Page{})).Items); after != before || after != 3 {
		t.Errorf("%d tenants, then %d", before, after)
	}
	h := must[api.Health](t)(s.Health(ctx, op))
	if h.Store != "sqlite" || h.Version != "test" || len(h.Checks) < 4 {
		t.Errorf("%+v", h)
	}
	for _, c := range h.Checks {
		if !c.OK && c.Name != "disk" || c.OK == (c.Remedy != "") {
			t.Errorf("%+v", c)
		}
	}
}

func TestTokens(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	dev := s.a[api.Developer]
	made := must[api.Token](t)(s.CreateToken(ctx, dev, api.NewToken{Name: "ci", Scopes: []string{"sandboxes:write", "sandboxes:read"}}))
	who := must[auth.Principal](t)(s.Auth.Token(ctx, made.Secret))
	a := ActorOf(who)
	if a.Principal() != "token:"+made.ID || a.Tenant != dev.Tenant || a.Role != api.Developer {
		t.Errorf("%+v", a)
	}
	done(t, may(a, WriteSandboxes))
	says(t, may(a, ReadAgents), fault.Denied, "scope agents:read")
	_, err := s.CreateToken(ctx, dev, api.NewToken{Name: "x", Scopes: []string{"agents:write"}})
	says(t, err, fault.Invalid, "may not do yourself")
	_, err = s.CreateToken(ctx, a, api.NewToken{Name: "x", Scopes: []string{"sandboxes:read"}})
	says(t, err, fault.Denied, "token")
	_, err = s.Tokens(ctx, a)
	says(t, err, fault.Denied, "token")
	second := must[api.Token](t)(s.CreateToken(ctx, dev, api.NewToken{Name: "two", Scopes: []string{"sandboxes:read"}}))
	says(t, s.RevokeToken(ctx, a, second.ID), fault.Denied, "token")
	says(t, s.RevokeToken(ctx, s.admin(), second.ID), fault.NotFound, "no such token")
	done(t, s.RevokeToken(ctx, a, made.ID)) // itself
	done(t, s.RevokeToken(ctx, dev, second.ID))
	if list := must[[]api.Token](t)(s.Tokens(ctx, dev)); len(list) > 0 {
		t.Errorf("%+v", list)
	}
	_, err = s.Auth.Token(ctx, made.Secret)
	wants(t, err, fault.Unauthenticated)
	if n := len(s.records(audit.TokenChanged)); n != 4 || s.find(made.Secret) != "" {
		t.Errorf("%d records, the secret stands in %q", n, s.find(made.Secret))
	}
	// A token of no scopes is nobody's master key.
	if b := ActorOf(auth.Principal{Tenant: "t", User: "u", Role: api.Administrator, Via: auth.ViaToken, TokenID: "x"}); len(b.permissions()) > 0 {
		t.Errorf("a token without scopes may %q", b.permissions())
	}
	if c := ActorOf(auth.Principal{Tenant: "t", User: "u", Role: api.Administrator}); known(c) == nil {
		t.Error("who came in no way is known")
	}
}

func TestSettings(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	first := must[api.Settings](t)(s.Settings(ctx, s.a[api.Viewer]))
	if first.MaxSandboxes != usualSandboxes || first.Version != 0 {
		t.Errorf("%+v", first)
	}
	p := must[api.Policy](t)(s.CreatePolicy(ctx, s.admin(), api.NewPolicy{Name: "usual", Text: openPolicy}))
	got := must[api.Settings](t)(s.ChangeSettings(ctx, s.admin(), 0, api.Settings{FourEyes: true, MaxSandboxes: 3, DefaultPolicy: "usual"}))
	if !got.FourEyes || got.DefaultPolicy != p.ID || got.Version != 1 {
		t.Errorf("%+v", got)
	}
	_, err := s.ChangeSettings(ctx, s.admin(), 7, api.Settings{MaxSandboxes: 3})
	wants(t, err, fault.Conflict)
	for _, bad := range []api.Settings{{}, {MaxSandboxes: -1}, {MaxSandboxes: 10_001}, {MaxSandboxes: 1, RetentionDays: -1}, {MaxSandboxes: 1, RetentionDays: 1 << 30}} {
		if _, err := s.ChangeSettings(ctx, s.admin(), 0, bad); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if a := must[api.Agent](t)(s.CreateAgent(ctx, s.admin(), api.NewAgent{Name: "build"})); a.Policy != p.ID {
		t.Errorf("%+v", a)
	}
	done(t, s.DeleteAgent(ctx, s.admin(), "build"))
	says(t, s.DeletePolicy(ctx, s.admin(), p.ID), fault.Conflict, "settings")
	must[api.Settings](t)(s.ChangeSettings(ctx, s.admin(), got.Version, api.Settings{MaxSandboxes: 3}))
	done(t, s.DeletePolicy(ctx, s.admin(), p.ID))
	if other := must[api.Settings](t)(s.Settings(ctx, s.other())); other.FourEyes || other.MaxSandboxes != usualSandboxes {
		t.Errorf("another tenant: %+v", other)
	}
}

// TestSignInFlood: refused attempts are all counted and not all written.
func TestSignInFlood(t *testing.T) {
	s, ctx := newStage(t), t.Context()
	from := netip.MustParseAddr("::ffff:192.0.2.7")
	for range 10_000 {
		done(t, s.RecordSignIn(ctx, SignIn{Method: "password", Address: from, Reason: "wrong email address or password"}))
	}
	done(t, s.RecordSignIn(ctx, SignIn{OK: true, Tenant: s.admin().Tenant, User: s.admin().User, Method: "password", Address: from}))
	s.clock.forward(time.Minute)
	done(t, s.RecordSignIn(ctx, SignIn{Tenant: s.admin().Tenant, User: s.admin().User, Method: "totp", Address: from, Reason: "wrong code"}))
	refused, total := s.records(audit.SignInRefused), uint64(0)
	for _, e := range refused {
		total += max(e.Count, 1)
	}
	if len(refused) > refusalBurst+1 || total != 10_001 {
		t.Errorf("%d records of %d attempts", len(refused), total)
	}
	in := s.records(audit.SignedIn)
	if len(in) != 1 || in[0].Principal != s.admin().Principal() || in[0].Tenant != s.admin().Tenant || in[0].Address != "192.0.2.7" {
		t.Errorf("%+v", in)
	}
}
