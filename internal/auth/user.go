package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/seal"
	"github.com/cofferdam/cofferdam/internal/store"
)

// User is what is stored of a person, in their tenant, under their email address as name. The object's state is the role, or "disabled".
type User struct {
	Name     string    `json:"name"`
	Role     api.Role  `json:"role"`
	Disabled bool      `json:"disabled,omitempty"`
	Operator bool      `json:"operator,omitempty"`
	LastSeen time.Time `json:"last_seen,omitzero"`
	// Epoch grows whenever what was proved before must count no more: a new password, a disabled user. Sessions, challenges and links carry the
	// epoch they were made in, so even one that was being made at that moment is void.
	Epoch int64 `json:"epoch"`
	// TokenEpoch grows whenever tokens must count no more; they carry the one they were made in. It is not Epoch, since a person who changes the password
	// keeps the tokens.
	TokenEpoch int64    `json:"token_epoch,omitempty"`
	Password   string   `json:"password,omitempty"` // PHC string; empty: cannot sign in by password
	TOTP       *Sealed  `json:"totp,omitempty"`
	Step       int64    `json:"step,omitempty"`     // last time step of a one-time code that was used
	Pending    *Sealed  `json:"pending,omitempty"`  // of a one-time code that is not confirmed yet
	Recovery   []string `json:"recovery,omitempty"` // SHA-256 of recovery codes, in hexadecimal
	Issuer     string   `json:"issuer,omitempty"`   // of the sign-in service, with the subject there
	Subject    string   `json:"subject,omitempty"`
}

// Sealed is a secret of a user's at rest.
type Sealed struct {
	Record string       `json:"record"` // random, never used twice
	Key    seal.Wrapped `json:"key"`
	Box    []byte       `json:"box"`
	Made   time.Time    `json:"made"`
}

// Tenant is what is stored of a tenant, an object of tenant "" whose name is the tenant's.
type Tenant struct{}

// where says in which tenant a user is: the content of the indexes that hold for the whole server.
type where struct {
	Tenant string `json:"tenant"`
	User   string `json:"user"`
}

// Users is the collection of users.
func Users() store.Collection[User] { return store.Of[User]("user") }

// Tenants is the collection of tenants.
func Tenants() store.Collection[Tenant] { return store.Of[Tenant]("tenant") }

// emails and identities are the indexes that make an email address, and a person at a sign-in service, one user on the whole server.
func emails() store.Collection[where]     { return store.Of[where]("email") }
func identities() store.Collection[where] { return store.Of[where]("identity") }

const stateDisabled = "disabled"

// state is what lists are narrowed by.
func (u User) state() string {
	if u.Disabled {
		return stateDisabled
	}
	return string(u.Role)
}

// identityName is the name of a person at a sign-in service, in the index.
func identityName(issuer, subject string) string {
	sum := sha256.Sum256([]byte(issuer + "\x00" + subject))
	return hex.EncodeToString(sum[:])
}

const maxEmail = 254 // RFC 5321, 4.5.3.1.3, less the brackets

// ParseEmail reads an email address and returns it in the form in which it is unique: lower case. It takes what people have, not all that RFC 5321
// allows: no quoted parts, no comments, no letters beyond ASCII, which would let two addresses look alike.
func ParseEmail(text string) (string, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	local, domain, ok := strings.Cut(text, "@")
	if !ok || len(text) > maxEmail || len(local) > 64 || !dotted(local, "!#$%&'*+-/=?^_`{|}~") || !dotted(domain, "-") {
		return "", fault.New(fault.Invalid, "this is not an email address").WithHint("write it like ada@example.com")
	}
	for label := range strings.SplitSeq(domain, ".") {
		if len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return "", fault.New(fault.Invalid, "this is not an email address").WithHint("write it like ada@example.com")
		}
	}
	return text, nil
}

// dotted reports whether a text is of non-empty parts between dots, of letters, digits and what else is named.
func dotted(text, also string) bool {
	for part := range strings.SplitSeq(text, ".") {
		if part == "" {
			return false
		}
		for _, c := range []byte(part) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte(also, c) < 0 {
				return false
			}
		}
	}
	return true
}

const maxName = 100

// parseName reads what a person, a key or a token is called.
func parseName(text string) (string, error) {
	clean := inert(text, len(text))
	if clean != strings.TrimSpace(text) || len(clean) > maxName || !utf8.ValidString(text) {
		return "", fault.New(fault.Invalid, "a name has at most %d bytes and no control characters", maxName)
	}
	return clean, nil
}

func parseRole(r api.Role) error {
	for _, known := range api.Roles() {
		if r == known {
			return nil
		}
	}
	return fault.New(fault.Invalid, "there is no role %q", string(r)).WithHint("the roles are viewer, developer, reviewer, administrator")
}

// byEmail finds a user. Found or not, it asks the store the same number of questions.
func (s *Service) byEmail(ctx context.Context, email string) (store.Object[User], bool, error) {
	index, err := emails().ByName(ctx, s.db, "", email)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return store.Object[User]{}, false, err
	}
	id := index.Data.User
	if err != nil {
		id = "nobody"
	}
	return s.byID(ctx, id)
}

// byID finds a user of any tenant.
func (s *Service) byID(ctx context.Context, id string) (store.Object[User], bool, error) {
	user, err := Users().Get(ctx, s.db, store.AnyTenant, id)
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return store.Object[User]{}, false, nil
	}
	return user, err == nil, err
}

// alive finds the user of a proof, who must still be the one it was made for.
func (s *Service) alive(ctx context.Context, p store.Proof, epoch int64, otherwise error) (store.Object[User], error) {
	user, found, err := s.byID(ctx, p.Subject)
	if err != nil {
		return user, err
	}
	if !found || user.Tenant != p.Tenant || user.Data.Disabled || user.Data.Epoch != epoch {
		return user, otherwise
	}
	return user, nil
}

// own finds the user that a principal is.
func (s *Service) own(ctx context.Context, p Principal) (store.Object[User], error) {
	if p.Via == ViaNothing || p.User == "" {
		return store.Object[User]{}, errSignIn()
	}
	return Users().Get(ctx, s.db, p.Tenant, p.User)
}

// attempts is how often a change is tried again that collided with another of the same user.
const attempts = 5

// change stores a change of a user; edit is called anew with the newest version where somebody else was quicker, and may refuse.
func (s *Service) change(ctx context.Context, user store.Object[User], edit func(*User) error) (store.Object[User], error) {
	for try := 1; ; try++ {
		if err := edit(&user.Data); err != nil {
			return user, err
		}
		user.State = user.Data.state()
		changed, err := Users().Update(ctx, s.db, user)
		if err == nil || fault.KindOf(err) != fault.Conflict || try == attempts {
			return changed, err
		}
		if user, err = Users().Get(ctx, s.db, user.Tenant, user.ID); err != nil {
			return user, err
		}
	}
}

// insert stores a new user and the index of the email address. It is called in a transaction.
func (s *Service) insert(ctx context.Context, tenant, email string, u User) (store.Object[User], error) {
	user, err := Users().Insert(ctx, s.db, store.Object[User]{Tenant: tenant, Name: email, State: u.state(), Data: u})
	if err != nil {
		return user, taken(err)
	}
	_, err = emails().Insert(ctx, s.db, store.Object[where]{Name: email, Data: where{Tenant: tenant, User: user.ID}})
	return user, taken(err)
}

// taken says the same for an address that is taken here and one that is taken in a tenant that the caller does not see.
func taken(err error) error {
	if err != nil && fault.KindOf(err) == fault.Conflict {
		return fault.New(fault.Conflict, "this email address is in use").Because(err)
	}
	return err
}
