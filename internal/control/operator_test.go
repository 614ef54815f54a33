package control

import (
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// TestOperatorIsMade: operators make operators, nobody else does, and one is always left.
func TestOperatorIsMade(t *testing.T) {
	s := newStage(t)
	ctx := t.Context()
	yes, no := true, false
	first, second := s.admin(), s.a[api.Developer]
	change := func(a Actor, id string, operator *bool) (api.User, error) {
		u := must[api.User](t)(s.Auth.GetUser(ctx, first.Tenant, id))
		return s.ChangeUser(ctx, a, id, u.Version, api.UserChange{Operator: operator})
	}
	_, err := change(first, second.User, &yes)
	wants(t, err, fault.Denied) // an administrator who is none
	if u := must[api.User](t)(s.Auth.GetUser(ctx, first.Tenant, second.User)); u.Operator {
		t.Fatal("made by one who may not")
	}
	// What setting the server up leaves behind, which the stage does not do.
	must[store.Object[map[string]string]](t)(store.Of[map[string]string]("settings").Insert(ctx, s.DB, store.Object[map[string]string]{
		Name: "first-administrator", Data: map[string]string{"user": first.User},
	}))
	done(t, s.Auth.SetOperator(ctx, first.Tenant, first.User, true))
	first.Operator = true
	if u := must[api.User](t)(change(first, second.User, &yes)); !u.Operator {
		t.Errorf("%+v", u)
	}
	if r := s.records(audit.UserChanged); !strings.Contains(r[len(r)-1].Detail, "operates the server") || r[len(r)-1].Principal != first.Principal() {
		t.Errorf("on record: %+v", r[len(r)-1])
	}
	if u := must[api.User](t)(change(first, second.User, &no)); u.Operator {
		t.Errorf("%+v", u)
	}
	_, err = change(first, first.User, &no)
	wants(t, err, fault.Conflict) // the last one
	token := first
	token.Via, token.ID = "token", "t"
	_, err = change(token, second.User, &yes)
	wants(t, err, fault.Denied)
}
