package auth

import (
	"fmt"
	"net/http"
	"time"
)

// Cookie is one of the cookies by which a browser is known. The zero value is none.
type Cookie uint8

// The cookies.
const (
	NoCookie        Cookie = iota
	SessionCookie          // who is signed in
	DeviceCookie           // this browser signed in before; it survives the session
	ChallengeCookie        // the second factor is outstanding
	CeremonyCookie         // of a passkey
	OIDCCookie             // sent to a sign-in service
)

var cookieNames = [...]string{"", "cofferdam", "cofferdam-device", "cofferdam-challenge", "cofferdam-passkey", "cofferdam-oidc"}

// String names the cookie, without the prefix that it has under TLS.
func (c Cookie) String() string {
	if c > NoCookie && int(c) < len(cookieNames) {
		return cookieNames[c]
	}
	return fmt.Sprintf("cookie(%d)", uint8(c))
}

// CookieName is the name by which a browser sends a cookie. Under TLS the prefix makes browsers refuse it from any other host, path, or plain http
// (RFC 6265bis, 4.1.3.2): a neighbouring site cannot plant a session.
func (s *Service) CookieName(c Cookie) string {
	if s.secure() {
		return "__Host-" + c.String()
	}
	return c.String()
}

// SetCookie hands a ticket to the browser.
func (s *Service) SetCookie(w http.ResponseWriter, c Cookie, t Ticket) {
	cookie := s.cookie(c)
	cookie.Value, cookie.Expires, cookie.MaxAge = t.Text(), t.Expires, max(1, int(t.Expires.Sub(s.now())/time.Second))
	if c == SessionCookie {
		// The server ends sessions, sliding; a cookie that the browser drops by the date of its first day would end them for it.
		cookie.Expires, cookie.MaxAge = time.Time{}, int(SessionLife/time.Second)
	}
	http.SetCookie(w, cookie)
}

// ClearCookie takes a cookie away.
func (s *Service) ClearCookie(w http.ResponseWriter, c Cookie) {
	cookie := s.cookie(c)
	cookie.MaxAge = -1
	http.SetCookie(w, cookie)
}

// ReadCookie returns a cookie's value, or "". Where a browser sends two of the name it is "": one of them is not ours.
func (s *Service) ReadCookie(r *http.Request, c Cookie) string {
	all := r.CookiesNamed(s.CookieName(c))
	if len(all) != 1 {
		return ""
	}
	return all[0].Value
}

// cookie has no Domain, so it is for this host alone. Lax: the browser brings it when a person follows a link here or comes back from a sign-in
// service, and leaves it behind when another site posts or embeds.
func (s *Service) cookie(c Cookie) *http.Cookie {
	return &http.Cookie{Name: s.CookieName(c), Path: "/", HttpOnly: true, Secure: s.secure(), SameSite: http.SameSiteLaxMode}
}
