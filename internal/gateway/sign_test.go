package gateway

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestSignedBody: a body whose hash the program did not send is held, hashed, signed with the program's own region in view, and arrives as it was.
func TestSignedBody(t *testing.T) {
	l := lend(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s|%d %x %v", r.Header.Get("Authorization"), len(body), sha256.Sum256(body), err)
	}, "", "use: sign, env: AWS")
	sign := []string{"Authorization", "AWS4-HMAC-SHA256 Credential=AKIAPLACEHOLDER00000/20260101/x"}
	l.versions(t, func(t *testing.T, c *http.Client) {
		c.Transport.(*http.Transport).ExpectContinueTimeout = 10 * time.Second // without it the body follows the head at once, and may meet a closed connection
		for _, size := range []int{0, 1, 5000, 70_000, 1 << 20, maxSigned} {   // several on one connection
			body := strings.Repeat("x", size)
			sum := sha256.Sum256([]byte(body))
			_, got := get(t, c, "POST", l.url("/sign"), body, sign...)
			hash, arrived, _ := strings.Cut(got, "|")
			if want := fmt.Sprintf("%d %x <nil>", size, sum); !strings.HasSuffix(hash, fmt.Sprintf("/sign %x", sum)) || arrived != want {
				t.Errorf("%d bytes: %.300s, want %s", size, got, want)
			}
		}
		// One that says beforehand how long it is, so that the refusal comes before the body goes.
		if answer, got := get(t, c, "POST", l.url("/sign"), strings.Repeat("x", maxSigned+1), append(sign, "Expect", "100-continue")...); answer.StatusCode != http.StatusBadGateway || !strings.Contains(got, "X-Amz-Content-Sha256") {
			t.Errorf("too long: %d %s", answer.StatusCode, got)
		}
		r := must(http.NewRequest("POST", l.url("/sign"), io.MultiReader(strings.NewReader("of unknown "), strings.NewReader("length"))))
		r.Header.Set(sign[0], sign[1])
		answer := must(c.Do(r))
		got := must(io.ReadAll(answer.Body))
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusBadGateway || !bytes.Contains(got, []byte("unknown length")) {
			t.Errorf("of unknown length: %d %s", answer.StatusCode, got)
		}
		// With its hash in the head it is not held.
		if _, got := get(t, c, "POST", l.url("/sign"), strings.Repeat("x", maxSigned+1), append(sign, "X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")...); !strings.Contains(strings.ReplaceAll(got, " |", "|"), fmt.Sprint("/sign|", maxSigned+1)) {
			t.Errorf("not held: %.200s", got)
		}
	})
	if n := l.g.signing.Load(); n != 0 {
		t.Errorf("%d bytes are held when all is over", n)
	}
	// What others hold counts.
	l.g.signing.Store(allSigned)
	if answer, got := get(t, l.client(), "POST", l.url("/sign"), "x", sign...); answer.StatusCode != http.StatusBadGateway || !strings.Contains(got, "too many") {
		t.Errorf("beyond all: %d %s", answer.StatusCode, got)
	}
}
