package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/store"
)

// allows is the table of roles: what each may do. Whoever reads may read everything in the tenant; no permission shows a secret.
func allows(role api.Role, p Permission) bool {
	switch role {
	case api.Administrator:
		return p != Operate && slices.Contains(Permissions(), p)
	case api.Developer:
		return reads(p) || p == WriteSandboxes
	case api.Reviewer:
		return reads(p) || p == DecideReview
	case api.Viewer:
		return reads(p)
	}
	return false
}

func reads(p Permission) bool {
	return slices.Contains([]Permission{ReadSandboxes, ReadAgents, ReadPolicies, ReadCredentials, ReadReview, ReadAudit, ReadUsers}, p)
}

// may is what every operation begins with: nil if the actor has the permission, by role and by scope.
func may(a Actor, p Permission) error {
	if err := known(a); err != nil {
		return err
	}
	allowed := allows(a.Role, p) || p == Operate && a.Operator
	switch {
	case !allowed && p == Operate:
		return fault.New(fault.Denied, "only an operator of the server may do this").WithHint("ask an operator")
	case !allowed:
		return fault.New(fault.Denied, "your role, %s, does not allow this", a.Role).WithHint("ask an administrator of the tenant for a role that has %s", p)
	case !a.scoped(p):
		return fault.New(fault.Denied, "this token has not the scope %s", p).WithHint("make a token with that scope")
	}
	return nil
}

// known refuses an actor that nobody proved to be. A tenant is looked up by equality everywhere, so one that stands for all must never come from outside.
func known(a Actor) error {
	signed := a.Via == "session" || a.Via == "token"
	if !signed || a.ID == "" || a.User == "" || a.Tenant == "" || a.Tenant == store.AnyTenant || !slices.Contains(api.Roles(), a.Role) {
		return fault.New(fault.Unauthenticated, "you are not signed in").WithHint("sign in, or send a token")
	}
	return nil
}

func (a Actor) scoped(p Permission) bool {
	return a.Scopes == nil || slices.Contains(a.Scopes, string(p))
}

// permissions lists what the actor may do.
func (a Actor) permissions() []string {
	list := []string{}
	for _, p := range Permissions() {
		if may(a, p) == nil {
			list = append(list, string(p))
		}
	}
	return list
}

// byline is how the actor is shown to people beside what they did.
func (a Actor) byline() string { return cmp.Or(a.Name, a.Principal()) }

// absent is the one sentence for what is not there and for what is another tenant's. It repeats nothing of what was asked for.
func absent(what string) error { return fault.New(fault.NotFound, "there is no such %s", what) }

// The bounds of a page.
const (
	usualPage   = 50
	largestPage = 500
	maxSearch   = 200
)

// filter turns a page into the store's filter.
func (p Page) filter() (store.Filter, error) {
	if p.Limit < 0 || p.Limit > largestPage {
		return store.Filter{}, fault.New(fault.Invalid, "a page cannot have that many entries").WithHint("write a limit of 1 to %d", largestPage)
	}
	if len(p.Search) > maxSearch {
		return store.Filter{}, fault.New(fault.Invalid, "the search text is longer than %d bytes", maxSearch).WithHint("search for a part of the name")
	}
	return store.Filter{Limit: cmp.Or(p.Limit, usualPage), After: p.After, Search: p.Search}, nil
}

// ofAgent is the filter for what belongs to an agent, or to any of the tenant's where none is named.
func (s *Service) ofAgent(ctx context.Context, tenant, agent string, p Page) (store.Filter, error) {
	f, err := p.filter()
	if err == nil && agent != "" {
		f.Parent, err = s.agentID(ctx, tenant, agent)
	}
	return f, err
}

// pageOf is a page of a tenant's objects, each as show has it.
func pageOf[T, V any](ctx context.Context, db *store.DB, c store.Collection[T], tenant string, f store.Filter, show func(store.Object[T]) V) (api.Page[V], error) {
	list, next, err := c.List(ctx, db, tenant, f)
	if err != nil {
		return api.Page[V]{}, err
	}
	out := api.Page[V]{Items: make([]V, 0, len(list)), Next: next}
	for _, o := range list {
		out.Items = append(out.Items, show(o))
	}
	return out, nil
}

// find returns an object of a tenant by its identifier or, where there is none, by its name. An identifier goes first, so that nobody can take over
// references to an object by giving its identifier to another one as a name.
func find[T any](ctx context.Context, db *store.DB, c store.Collection[T], tenant, what, idOrName string) (store.Object[T], error) {
	var none store.Object[T]
	if idOrName == "" || len(idOrName) > 2*maxName {
		return none, absent(what)
	}
	o, err := c.Get(ctx, db, tenant, idOrName)
	if fault.KindOf(err) == fault.NotFound {
		name, bad := ParseName(idOrName)
		if bad != nil {
			return none, absent(what)
		}
		o, err = c.ByName(ctx, db, tenant, name)
	}
	if fault.KindOf(err) == fault.NotFound {
		return none, absent(what)
	}
	if err != nil {
		return none, fmt.Errorf("look up a %s: %w", what, err)
	}
	return o, nil
}

// every calls f for all objects that a filter selects, page by page.
func every[T any](ctx context.Context, db *store.DB, c store.Collection[T], tenant string, f store.Filter, do func(store.Object[T]) error) error {
	f.Limit, f.After = 1000, ""
	for {
		list, next, err := c.List(ctx, db, tenant, f)
		if err != nil {
			return err
		}
		for _, o := range list {
			if err := do(o); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		f.After = next
	}
}

// current refuses a change of a version that is not the newest. 0 asks for no such check.
func current[T any](o store.Object[T], version int64) error {
	if version != 0 && version != o.Version {
		return fault.New(fault.Conflict, "somebody else has changed it meanwhile").WithHint("read it again, and repeat the change")
	}
	return nil
}
