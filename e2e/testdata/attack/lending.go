package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// wished are options of an attempt, NAME or NAME=VALUE.
type wished map[string]string

func wishes(text string) wished {
	w := wished{}
	for one := range strings.FieldsSeq(text) {
		name, value, _ := strings.Cut(one, "=")
		w[name] = value
	}
	return w
}

func (w wished) has(name string) bool { _, there := w[name]; return there }

func (w wished) number(name string, otherwise int) int {
	if n, err := strconv.Atoi(w[name]); err == nil {
		return n
	}
	return otherwise
}

// spelled puts placeholders in: {P} as it is, {1} and {2} its halves, {X} in hexadecimal, {B} in base64 with a user, {L} in lower case, {U} percent-encoded, {K}
// another credential's; {S*N} is a run of N letters. Then it undoes \r, \n, \0 and \xNN.
func spelled(text string) (string, error) {
	p := os.Getenv("API_TOKEN")
	if len(p) < 16 {
		return "", broken("no placeholder in the environment")
	}
	var percent strings.Builder
	for _, c := range []byte(p) {
		fmt.Fprintf(&percent, "%%%02x", c)
	}
	text = strings.NewReplacer("{P}", p, "{1}", p[:len(p)/2], "{2}", p[len(p)/2:], "{X}", hex.EncodeToString([]byte(p)), "{B}", base64.StdEncoding.EncodeToString([]byte("u:"+p)), "{L}", strings.ToLower(p),
		"{U}", percent.String(), "{K}", os.Getenv("API_KEY"), "{n/2}", fmt.Sprintf("%x", len(p)/2), "{n-n/2}", fmt.Sprintf("%x", len(p)-len(p)/2)).Replace(text)
	for {
		before, rest, found := strings.Cut(text, "{S*")
		count, after, closed := strings.Cut(rest, "}")
		n, err := strconv.Atoi(count)
		if !found || !closed || err != nil {
			break
		}
		text = before + strings.Repeat("s", n) + after
	}
	raw, err := strconv.Unquote(`"` + strings.ReplaceAll(text, `"`, `\"`) + `"`)
	if err != nil {
		return "", broken("%v", err)
	}
	return raw, nil
}

// secured connects by TLS to HOST:PORT. The authority is trusted as every program inside trusts it.
func secured(to string, w wished, protocol string) (*tls.Conn, error) {
	c, err := net.DialTimeout("tcp", to, patience())
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(to)
	config := &tls.Config{ServerName: host, NextProtos: []string{protocol}}
	if w.has("sni") {
		config.ServerName, config.InsecureSkipVerify = w["sni"], true
	}
	secured := tls.Client(c, config)
	_ = secured.SetDeadline(time.Now().Add(4 * patience())) // fails only for a closed connection
	if err := secured.Handshake(); err != nil {
		_ = c.Close()
		return nil, err
	}
	return secured, nil
}

// answer is what came back on a request.
type answer struct {
	status string
	header map[string]string // names in lower case
}

func (a answer) String() string {
	if a.header["x-server"] == "" {
		return a.status + " " + a.header["cofferdam-denied"]
	}
	return strings.TrimSpace(a.status + " of the server, lent: " + a.header["x-lent"])
}

// through judges answers: it got through if more than max of them are the server's, or with "lent" if the credential was lent more often than that.
func through(all []answer, w wished, err error) (string, error) {
	count := 0
	var texts []string
	for _, a := range all {
		if w.has("lent") && a.header["x-lent"] == "yes" || !w.has("lent") && a.header["x-server"] != "" {
			count++
		}
		texts = append(texts, a.String())
	}
	text := fmt.Sprintf("%d answers: %s", len(all), strings.Join(texts, "; "))
	if count > w.number("max", 0) {
		return text, nil
	}
	if n := w.number("least", 0); count < n {
		return "", broken("%s, at least %d should be good", text, n)
	}
	if len(all) == 0 && err != nil {
		return "", fmt.Errorf("%s: %w", text, err)
	}
	return "", errors.New(text)
}

// lentRaw sends bytes inside TLS as HTTP/1: HOST:PORT BYTES [options]. Options: sni=NAME, split=N bytes a record, slow (a byte a second), max, least, lent.
func lentRaw(args []string) (string, error) {
	w := wishes(arg(args, 2, ""))
	raw, err := spelled(arg(args, 1, ""))
	if err != nil {
		return "", err
	}
	c, err := secured(arg(args, 0, ""), w, "http/1.1")
	if err != nil {
		return "", err
	}
	defer c.Close()
	go func() { // an answer may come before all is sent
		step := w.number("split", len(raw))
		for rest := raw; rest != ""; rest = rest[min(step, len(rest)):] {
			if _, err := io.WriteString(c, rest[:min(step, len(rest))]); err != nil {
				return // refused: the answer tells
			}
			if w.has("slow") {
				time.Sleep(time.Second)
			}
		}
	}()
	var all []answer
	b := bufio.NewReader(c)
	for {
		r, err := http.ReadResponse(b, nil)
		if err != nil {
			return through(all, w, err)
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
		a := answer{strconv.Itoa(r.StatusCode), map[string]string{}}
		for name := range r.Header {
			a.header[strings.ToLower(name)] = r.Header.Get(name)
		}
		fmt.Printf("%s %v %.300q\n", r.Status, r.Header, body)
		if all = append(all, a); err != nil || len(all) > 20 {
			return through(all, w, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(1200 * time.Millisecond)) // as above
	}
}

// lentRoutes makes requests with and without the credential over one connection, and looks at which connections of the gateway they arrive: got through means that one had both.
func lentRoutes(args []string) (string, error) {
	to, protocol := arg(args, 0, ""), arg(args, 1, "http/1.1")
	c, err := secured(to, nil, protocol)
	if err != nil {
		return "", err
	}
	defer c.Close()
	client := &http.Client{Timeout: patience(), Transport: &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }, ForceAttemptHTTP2: protocol == "h2", MaxConnsPerHost: 1,
	}}
	had := map[string]string{} // by connection, whether requests over it were lent the credential
	for i := range 6 {
		r, err := http.NewRequest("GET", "https://"+to+"/v1/x", nil)
		if err != nil {
			return "", broken("%v", err)
		}
		want := "no"
		if i%2 == 0 {
			want = "yes"
			r.Header.Set("Authorization", "Bearer "+os.Getenv("API_TOKEN"))
		}
		got, err := client.Do(r)
		if err != nil {
			return "", broken("%v", err)
		}
		_, err = io.Copy(io.Discard, got.Body)
		_ = got.Body.Close() // read to its end
		if lent := got.Header.Get("X-Lent"); err != nil || lent != want {
			return "", broken("request %d: %s, lent: %s, %v", i, got.Status, lent, err)
		}
		over := got.Header.Get("X-Conn")
		if before, seen := had[over]; seen && before != want {
			return "shared: " + over, nil
		}
		had[over] = want
	}
	return "", fmt.Errorf("%d connections, none with both", len(had))
}

// lentBody sends bytes of every kind beside the placeholder and compares their sum at the server with its own: got through means that they were changed.
func lentBody(args []string) (string, error) {
	body := make([]byte, 200_000)
	for i := range body {
		body[i] = byte(i * i >> 3)
	}
	to := arg(args, 0, "")
	config := &tls.Config{NextProtos: []string{arg(args, 1, "http/1.1")}}
	client := &http.Client{Timeout: 2 * patience(), Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: arg(args, 1, "") == "h2"}}
	r, err := http.NewRequest("POST", "https://"+to+"/v1/body", bytes.NewReader(body))
	if err != nil {
		return "", broken("%v", err)
	}
	r.Header.Set("Authorization", "Bearer "+os.Getenv("API_TOKEN"))
	got, err := client.Do(r)
	if err != nil {
		return "", broken("%v", err)
	}
	defer got.Body.Close()
	sum := sha256.Sum256(body)
	if got.Header.Get("X-Lent") != "yes" {
		return "", broken("not lent: %s", got.Status)
	}
	if got.Header.Get("X-Body") != hex.EncodeToString(sum[:]) {
		return "the body arrived changed", nil
	}
	return "", errors.New("the body is intact")
}
