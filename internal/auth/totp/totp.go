// Package totp (CONTROL) computes one-time codes by time (RFC 6238), and shows the secret to a person's telephone.
package totp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" // what authenticator applications can do: RFC 6238 with SHA-1, whose collisions do not matter to HMAC
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"time"

	"rsc.io/qr"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/secret"
)

// What every authenticator application supports.
const (
	Digits       = 6
	Period       = 30 * time.Second
	secretLength = 20 // bytes, the length of the hash: RFC 4226, 4
	window       = 1  // steps to either side: clocks that are half a minute apart, and slow typing
)

// NewSecret returns a fresh secret.
func NewSecret() secret.Bytes {
	b := make([]byte, secretLength)
	_, _ = rand.Read(b) // never fails since Go 1.24
	return secret.Take(b)
}

// Step is the number of the time step that a moment lies in.
func Step(now time.Time) int64 { return now.Unix() / int64(Period/time.Second) }

// Code is what an authenticator shows in a step.
func Code(s secret.Bytes, step int64) string {
	mac := hmac.New(sha1.New, s.Reveal())
	_ = binary.Write(mac, binary.BigEndian, step) // a hash takes everything
	sum := mac.Sum(nil)
	at := sum[len(sum)-1] & 0xf
	return fmt.Sprintf("%0*d", Digits, binary.BigEndian.Uint32(sum[at:])&0x7fffffff%1_000_000)
}

// Check returns the step that a code belongs to, if that is after the last step used and not further from now than the window. A code therefore
// proves something once: who reads it over a shoulder, or in a log, has nothing. The caller stores the step, guarded against another who does so
// at the same time. Spaces in the code do not matter: applications show "123 456".
func Check(s secret.Bytes, code string, now time.Time, last int64) (step int64, ok bool) {
	code = strings.ReplaceAll(code, " ", "")
	if s.Empty() || len(code) != Digits {
		return 0, false
	}
	// All steps are compared, so that the time tells nothing.
	for try := Step(now) - window; try <= Step(now)+window; try++ {
		if subtle.ConstantTimeCompare([]byte(Code(s, try)), []byte(code)) == 1 && try > last {
			step, ok = try, true
		}
	}
	return step, ok
}

// Text is the secret as people type it.
func Text(s secret.Bytes) string {
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(s.Reveal())
}

// URL is the secret as authenticator applications read it. Issuer and account are what they show.
func URL(s secret.Bytes, issuer, account string) string {
	label := url.PathEscape(issuer) + ":" + url.PathEscape(account)
	// url.Values would write a space as "+", which some applications show.
	query := fmt.Sprintf("secret=%s&issuer=%s&algorithm=SHA1&digits=%d&period=%d", Text(s), url.PathEscape(issuer), Digits, Period/time.Second)
	return "otpauth://totp/" + label + "?" + query
}

// quiet is the white margin that readers need, in modules (ISO/IEC 18004).
const quiet = 4

// SVG draws a text as a QR code: black modules on white whatever the page's colours are, since that is what cameras look for. It holds no script
// and refers to nothing, so a page may show it under the strictest content security policy.
func SVG(text string) ([]byte, error) {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the text is too long for a QR code").Because(err)
	}
	var b strings.Builder
	side := code.Size + 2*quiet
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" shape-rendering="crispEdges" role="img" aria-label="QR code"><rect width="%d" height="%d" fill="#fff"/><path fill="#000" d="`, side, side, side, side)
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			run := 0
			for x+run < code.Size && code.Black(x+run, y) {
				run++
			}
			if run > 0 {
				fmt.Fprintf(&b, "M%d %dh%dv1h-%dz", x+quiet, y+quiet, run, run)
				x += run
			}
		}
	}
	b.WriteString(`"/></svg>`)
	return []byte(b.String()), nil
}
