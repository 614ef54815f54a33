package server

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/control"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/sandbox"
)

// ahead is a clock that a test can put forward.
type ahead struct{ by atomic.Int64 }

func (a *ahead) now() time.Time { return time.Now().Add(time.Duration(a.by.Load())) }

// signOut takes a user's rights away, and lets the time go by after which that is seen.
func (s *stage) signOut(t *testing.T, of *tenant, role api.Role, clock *ahead) {
	t.Helper()
	off := true
	if _, err := s.auth.ChangeUser(t.Context(), of.id, of.users[role], 0, api.UserChange{Disabled: &off}); err != nil {
		t.Fatal(err)
	}
	clock.by.Add(int64(time.Minute))
}

// Output that never stops does not hide that its reader was signed out.
func TestOutputEndsWithTheSession(t *testing.T) {
	clock := &ahead{}
	s := newStage(t, func(o *Options) { o.Clock = clock.now })
	box := put(s, s.a, "sandbox", "", "running", control.SandboxData{})
	runs, err := sandbox.OpenStore(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	dir := runs.Dir(ident.Run(box))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := keeper.OpenOutput(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // less than the time between two signs of life
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for line := []byte(strings.Repeat("x", 1000)); ctx.Err() == nil; time.Sleep(time.Millisecond) {
			if _, err := log.Write(line); err != nil {
				return
			}
		}
	}()
	defer func() { cancel(); <-ended }()
	r, err := http.NewRequestWithContext(ctx, "GET", s.http.URL+prefix+"/sandboxes/"+box+"/output?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.token(s.a, api.Viewer))
	got, err := s.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	if _, err := io.ReadFull(got.Body, make([]byte, 5000)); err != nil || got.StatusCode != 200 {
		t.Fatalf("%d %v", got.StatusCode, err)
	}
	s.signOut(t, s.a, api.Viewer, clock)
	rest, err := io.ReadAll(got.Body)
	if err != nil || !bytes.Contains(rest, []byte("event: end\n")) || !bytes.Contains(rest, []byte(codeUnauthenticated)) {
		t.Errorf("%d bytes more, %v: …%s", len(rest), err, rest[max(0, len(rest)-300):])
	}
}

// Files of any size go, both ways, to and from who is still signed in.
func TestCopyEndsWithTheSession(t *testing.T) {
	clock := &ahead{}
	s := newStage(t, func(o *Options) { o.Clock = clock.now })
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+s.token(s.a, api.Viewer))
	c := &call{request: r}
	if err := s.authenticate(r, c); err != nil {
		t.Fatal(err)
	}
	out := watchedWriter{io.Discard, s.lookout(c)}
	in := watchedReader{strings.NewReader("much"), s.lookout(c)}
	clock.by.Add(int64(time.Minute))
	if _, err := out.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := in.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	s.signOut(t, s.a, api.Viewer, clock)
	if _, err := out.Write([]byte("x")); err == nil {
		t.Error("a file goes on to who was signed out")
	}
	if _, err := in.Read(make([]byte, 1)); err == nil {
		t.Error("a file goes on from who was signed out")
	}
}
