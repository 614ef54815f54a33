package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// lendingScenes need a look from outside, or two sandboxes.
func lendingScenes() []scene {
	return []scene{
		{"C20c", "two sandboxes lent the same credential: each has connections and placeholders of its own", lentNeighbours},
		{"C26b", "a certificate of one sandbox in another", foreignLeaf},
		{"D8", "a credential is rotated, under the sandbox, to a value that contains another's placeholder", lentOnce},
		{"D10b", "the store's key is gone", lostKey},
		{"D10c", "the store is gone while the sandbox runs", lostStore},
	}
}

// quietRun runs a line in a sandbox that is lent everything.
func (l *lender) quietRun(h *house, flags []string, line string) result {
	line = "URL=https://ok" + lentDomain + ":" + l.both + "; " + line
	return h.do(append(append([]string{"run"}, flags...), "--", "sh", "-c", line)...)
}

const lentAsk = `curl -sS --max-time 30 -o /dev/null -D - -H "Authorization: Bearer $T" $URL/v1/x`

func lentNeighbours(t *testing.T, _ *suite, h *house) outcome {
	l := newLender(t)
	flags := l.house(h, []string{"ok" + lentDomain})
	ctx, cancel := context.WithTimeout(t.Context(), h.as.patience(40*time.Second))
	defer cancel()
	var out [2]bytes.Buffer
	var errs [2]error
	var wg sync.WaitGroup
	for i := range out {
		cmd := h.command(ctx, append(append([]string{"run"}, flags...), "--", "sh", "-c", "T=$API_TOKEN; URL=https://ok"+lentDomain+":"+l.both+"; echo held: $T; for i in 1 2 3; do "+lentAsk+"; done; sleep 3")...)
		cmd.Stdout = &out[i]
		wg.Go(func() { errs[i] = cmd.Run() })
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return outcome{unknown, err.Error()}
	}
	var held, used [2]string
	for i := range out {
		for line := range strings.Lines(out[i].String()) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			switch strings.ToLower(name) {
			case "held":
				held[i] = value
			case "x-conn":
				used[i] += value + " "
			}
		}
		if strings.Count(strings.ToLower(out[i].String()), "x-lent: yes") != 3 || held[i] == "" {
			return outcome{unknown, "not lent to both: " + lastLine(out[i].String())}
		}
	}
	for c := range strings.FieldsSeq(used[0]) {
		if slices.Contains(strings.Fields(used[1]), c) {
			return outcome{open, "both used " + c}
		}
	}
	if held[0] == held[1] {
		return outcome{open, "both hold the same placeholder"}
	}
	r := l.quietRun(h, flags, "T="+held[0]+"; "+lentAsk)
	if e, ok := denied(h.events(), event{Rule: "foreign-credential"}); !ok || strings.Contains(strings.ToLower(r.stdout), "x-lent: yes") {
		return outcome{open, "the placeholder of another sandbox: " + lastLine(r.stdout)}
	} else {
		return outcome{blocked, "connections and placeholders apart; another's is on record: " + e.brief()}
	}
}

func foreignLeaf(t *testing.T, _ *suite, h *house) outcome {
	l := newLender(t)
	flags := l.house(h, []string{"ok" + lentDomain})
	const verify = `openssl verify -purpose sslserver -CAfile "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" -untrusted chain.pem chain.pem 2>&1`
	r := l.quietRun(h, flags, `openssl s_client -connect ok`+lentDomain+`:`+l.both+` -servername ok`+lentDomain+` -showcerts </dev/null 2>/dev/null | sed -n '/BEGIN/,/END/p' >chain.pem; cat chain.pem; `+verify)
	chain, said, found := strings.Cut(r.stdout, "chain.pem: OK")
	if !found || !strings.Contains(chain, "BEGIN") {
		return outcome{unknown, "control: in its own sandbox it is not accepted: " + lastLine(r.stdout+said)}
	}
	h.write("chain.pem", chain)
	r = l.quietRun(h, flags, `curl -sSf -o /dev/null --max-time 30 $URL/pub/x || exit 3; `+verify)
	return ran{r.code, r.stdout + r.stderr}.verdict("unable to get local issuer|signature failure|verification failed|self-signed certificate in certificate chain")
}

func lentOnce(t *testing.T, _ *suite, h *house) outcome {
	l := newLender(t)
	flags := l.house(h, []string{"ok" + lentDomain})
	ctx, cancel := context.WithTimeout(t.Context(), h.as.patience(40*time.Second))
	defer cancel()
	cmd := h.command(ctx, append(append([]string{"run"}, flags...), "--", "sh", "-c",
		"T=$API_TOKEN; URL=https://ok"+lentDomain+":"+l.both+"; "+lentAsk+"; echo held: $API_KEY; read go; "+lentAsk+"; curl -sS --max-time 30 -H \"Authorization: Bearer $T\" $URL/v1/x")...)
	in, err1 := cmd.StdinPipe()
	pipe, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return outcome{unknown, err.Error()}
	}
	defer func() { _ = cmd.Wait() }() // what it said tells
	var out bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(out.String(), "held: ") || !strings.HasSuffix(out.String(), "\n") {
		n, err := pipe.Read(buf)
		if out.Write(buf[:n]); err != nil {
			return outcome{unknown, "it ended: " + lastLine(out.String())}
		}
	}
	_, other, _ := strings.Cut(out.String(), "held: ")
	rotated := "tok-CANARY-" + strings.TrimSpace(other) + "-4e61"
	first := strings.ToLower(out.String())
	l.sent.set(rotated)
	if r := h.doWith(time.Minute, rotated+"\n", "credential", "rotate", "api"); r.code != 0 {
		return outcome{unknown, "rotate: " + r.stderr}
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		return outcome{unknown, err.Error()}
	}
	rest, _ := io.ReadAll(pipe) // to its end
	switch text := string(rest); {
	case !strings.Contains(first, "x-lent: yes"):
		return outcome{unknown, "control: not lent before"}
	case strings.Contains(text, rotated) || strings.Contains(text, "tok-CANARY"):
		return outcome{open, "the credential was seen inside"}
	case !strings.Contains(strings.ToLower(text), "x-lent: yes"):
		return outcome{open, "what arrived is not what was rotated to: " + lastLine(text)}
	}
	for _, x := range l.since(0) {
		if strings.Contains(x.text, keyCanary) {
			return outcome{open, "the placeholder within the credential was swapped too"}
		}
	}
	return outcome{blocked, "the new value arrived as it is, the echo of it is not seen"}
}

func lostKey(t *testing.T, _ *suite, h *house) outcome {
	l := newLender(t)
	flags := l.house(h, []string{"ok" + lentDomain})
	keys := filepath.Join(h.state, "seal")
	away := keys + ".away"
	if err := os.Rename(keys, away); err != nil {
		return outcome{unknown, err.Error()}
	}
	r := l.quietRun(h, flags, "T=$API_TOKEN; "+lentAsk)
	if err := errors.Join(os.RemoveAll(keys), os.Rename(away, keys)); err != nil {
		return outcome{unknown, err.Error()}
	}
	if r.code != 125 || r.stdout != "" || len(l.since(0)) != 0 {
		return outcome{open, fmt.Sprintf("status %d: %s", r.code, lastLine(r.stdout+r.stderr))}
	}
	if back := l.quietRun(h, flags, "T=$API_TOKEN; "+lentAsk); !strings.Contains(strings.ToLower(back.stdout), "x-lent: yes") {
		return outcome{unknown, "control: not lent with the key back in its place: " + lastLine(back.stdout+back.stderr)}
	}
	return outcome{blocked, "the run does not start: " + firstLine(r.stderr)}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return lastLine(line)
}

func lostStore(t *testing.T, _ *suite, h *house) outcome {
	l := newLender(t)
	flags := l.house(h, []string{"ok" + lentDomain})
	ctx, cancel := context.WithTimeout(t.Context(), h.as.patience(40*time.Second))
	defer cancel()
	cmd := h.command(ctx, append(append([]string{"run"}, flags...), "--", "sh", "-c", "T=$API_TOKEN; URL=https://ok"+lentDomain+":"+l.both+"; "+lentAsk+"; echo now; read go; "+lentAsk)...)
	in, err1 := cmd.StdinPipe()
	pipe, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return outcome{unknown, err.Error()}
	}
	defer func() { _ = cmd.Wait() }() // what it said tells
	var out bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(out.String(), "now\n") {
		n, err := pipe.Read(buf)
		if out.Write(buf[:n]); err != nil {
			return outcome{unknown, "it ended: " + lastLine(out.String())}
		}
	}
	files, err := filepath.Glob(filepath.Join(h.state, "credentials", "*.credential"))
	if err != nil || len(files) == 0 {
		return outcome{unknown, "no files of credentials"}
	}
	for _, f := range files {
		if err := os.Truncate(f, 0); err != nil {
			return outcome{unknown, err.Error()}
		}
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		return outcome{unknown, err.Error()}
	}
	rest, _ := io.ReadAll(pipe) // to its end
	if !strings.Contains(strings.ToLower(out.String()), "x-lent: yes") {
		return outcome{unknown, "control: not lent before: " + lastLine(out.String())}
	}
	if strings.Contains(strings.ToLower(string(rest)), "x-server") {
		return outcome{open, "a request arrived: " + strconv.Quote(lastLine(string(rest)))}
	}
	if e, ok := denied(h.events(), event{Rule: "credential-unavailable"}); ok {
		return outcome{blocked, "on record: " + e.brief()}
	}
	return outcome{unknown, "refused, but not on record: " + lastLine(string(rest))}
}
