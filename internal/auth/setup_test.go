package auth

import (
	"testing"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

func TestSetup(t *testing.T) { testSetup(t) }

func testSetup(t *testing.T, with ...func(*Options)) {
	f := empty(t, with...)
	if need, err := f.NeedsSetup(t.Context()); !need || err != nil {
		t.Error(need, err)
	}
	first, _, err := f.SetupToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	token, link, err := f.SetupToken(t.Context())
	if err != nil || tokenIn(t, link) != token.Text() {
		t.Fatal(link, err)
	}
	wants(t, "the earlier token", f.CheckSetup(t.Context(), first.Text()), fault.NotFound)
	for _, bad := range []struct{ email, name, pass, tenant string }{
		{"ada", "Ada", goodPass, "T"}, {adminEmail, "A\x00da", goodPass, "T"}, {adminEmail, "Ada", "short", "T"}, {adminEmail, "Ada", goodPass, ""}, {adminEmail, "Ada", "password", "T"},
	} {
		_, err := f.CompleteSetup(t.Context(), token.Text(), bad.email, bad.name, bad.pass, bad.tenant)
		wants(t, "bad input", err, fault.Invalid)
	}
	out, err := f.CompleteSetup(t.Context(), token.Text(), "Ada@Example.com", "Ada", goodPass, "Analytical")
	if err != nil {
		t.Fatal(err)
	}
	u, err := f.GetUser(t.Context(), out.Tenant, out.User)
	if err != nil || u.Email != adminEmail || u.Role != api.Administrator || !u.Operator || !u.Password || u.TOTP {
		t.Errorf("%+v, %v", u, err)
	}
	if tenant, err := Tenants().Get(t.Context(), f.db, "", out.Tenant); err != nil || tenant.Name != "Analytical" {
		t.Errorf("%+v, %v", tenant, err)
	}
	_, err = f.CompleteSetup(t.Context(), token.Text(), "eve@example.com", "Eve", goodPass, "Evil")
	wants(t, "again", err, fault.NotFound)
	_, _, err = f.SetupToken(t.Context())
	wants(t, "a token afterwards", err, fault.Conflict)
	f.signIn(adminEmail, goodPass)
}

func TestSetupExpires(t *testing.T) {
	f := empty(t)
	token, _, err := f.SetupToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.advance(setupLife)
	_, err = f.CompleteSetup(t.Context(), token.Text(), adminEmail, "Ada", goodPass, "Analytical")
	wants(t, "a day later", err, fault.NotFound)
}

func TestSetupRace(t *testing.T) { testSetupRace(t) }

func testSetupRace(t *testing.T, with ...func(*Options)) {
	f := empty(t, with...)
	token, _, err := f.SetupToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// A second replica that made its own token at the same moment.
	other, err := f.issue(t.Context(), kindSetup, "", "", setupLife, struct{}{})
	if err != nil {
		t.Fatal(err)
	}
	emails := make(chan int, 20)
	for n := range 20 {
		emails <- n
	}
	won := race(t, 20, func() error {
		n := <-emails
		text := token.Text()
		if n%2 == 0 {
			text = other.Text()
		}
		_, err := f.CompleteSetup(t.Context(), text, string(rune('a'+n))+"@example.com", "X", goodPass, string(rune('A'+n)))
		return err
	}, fault.NotFound, fault.Conflict)
	users, _, err := Users().List(t.Context(), f.db, store.AnyTenant, store.Filter{})
	if won != 1 || len(users) != 1 || err != nil {
		t.Errorf("%d won, %d users, %v", won, len(users), err)
	}
	if n, err := Tenants().Count(t.Context(), f.db, "", store.Filter{}); n != 1 || err != nil {
		t.Errorf("%d tenants, %v", n, err)
	}
}

func TestPeople(t *testing.T) { testPeople(t) }

func testPeople(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	bob := f.join("bob@example.com", api.Viewer)
	_, err := f.AddUser(t.Context(), f.admin.Tenant, api.NewUser{Email: "BOB@example.com", Role: api.Viewer})
	wants(t, "twice", err, fault.Conflict)
	other, err := Tenants().Insert(t.Context(), f.db, store.Object[Tenant]{Name: "Other"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.AddUser(t.Context(), other.ID, api.NewUser{Email: "bob@example.com", Role: api.Viewer})
	wants(t, "in another tenant", err, fault.Conflict)
	for _, bad := range []api.NewUser{{Email: "x", Role: api.Viewer}, {Email: "x@example.com"}, {Email: "x@example.com", Role: "root"}, {Email: "x@example.com", Role: api.Viewer, Name: "a\nb"}} {
		_, err := f.AddUser(t.Context(), f.admin.Tenant, bad)
		wants(t, "bad input", err, fault.Invalid)
	}
	_, err = f.GetUser(t.Context(), other.ID, bob.ID)
	wants(t, "seen from another tenant", err, fault.NotFound)
	if list, _, err := f.ListUsers(t.Context(), f.admin.Tenant, store.Filter{ByName: true}); err != nil || len(list) != 2 || list[0].Email != adminEmail {
		t.Errorf("%+v, %v", list, err)
	}
	name, role, yes := "Bob B", api.Reviewer, true
	changed, err := f.ChangeUser(t.Context(), f.admin.Tenant, bob.ID, bob.Version, api.UserChange{Name: &name, Role: &role})
	if err != nil || changed.Name != name || changed.Role != role {
		t.Errorf("%+v, %v", changed, err)
	}
	_, err = f.ChangeUser(t.Context(), f.admin.Tenant, bob.ID, bob.Version, api.UserChange{Disabled: &yes})
	wants(t, "an old version", err, fault.Conflict)
	role = "root"
	_, err = f.ChangeUser(t.Context(), f.admin.Tenant, bob.ID, 0, api.UserChange{Role: &role})
	wants(t, "no role", err, fault.Invalid)
	wants(t, "removed from another tenant", f.RemoveUser(t.Context(), other.ID, bob.ID, 0), fault.NotFound)
	if err := f.RemoveUser(t.Context(), f.admin.Tenant, bob.ID, 0); err != nil {
		t.Fatal(err)
	}
	f.join("bob@example.com", api.Viewer) // the address is free again
}

func TestLastAdministrator(t *testing.T) { testLastAdministrator(t) }

func testLastAdministrator(t *testing.T, with ...func(*Options)) {
	f := start(t, with...)
	viewer, yes := api.Viewer, true
	_, err := f.ChangeUser(t.Context(), f.admin.Tenant, f.admin.User, 0, api.UserChange{Role: &viewer})
	wants(t, "demoted", err, fault.Conflict)
	_, err = f.ChangeUser(t.Context(), f.admin.Tenant, f.admin.User, 0, api.UserChange{Disabled: &yes})
	wants(t, "disabled", err, fault.Conflict)
	wants(t, "removed", f.RemoveUser(t.Context(), f.admin.Tenant, f.admin.User, 0), fault.Conflict)
	wants(t, "no operator", f.SetOperator(t.Context(), f.admin.Tenant, f.admin.User, false), fault.Conflict)
	bob := f.join("bob@example.com", api.Administrator)
	_, err = f.ChangeUser(t.Context(), f.admin.Tenant, f.admin.User, 0, api.UserChange{Disabled: &yes})
	wants(t, "the last operator", err, fault.Conflict)
	if err := f.SetOperator(t.Context(), f.admin.Tenant, bob.ID, true); err != nil {
		t.Fatal(err)
	}
	users := make(chan string, 2)
	users <- bob.ID
	users <- f.admin.User
	if won := race(t, 2, func() error {
		_, err := f.ChangeUser(t.Context(), f.admin.Tenant, <-users, 0, api.UserChange{Role: &viewer})
		return err
	}, fault.Conflict); won != 1 {
		t.Errorf("%d of 2 administrators were demoted", won)
	}
}
