package web

import (
	"context"
	"net/http"
	"os"
	"testing"
	"time"
)

// TestPreview serves the pages with made-up data at COFFERDAM_PREVIEW (an address of this machine), for looking at them, until it is interrupted.
// The address is followed by a sample: empty, many, hostile.
func TestPreview(t *testing.T) {
	address := os.Getenv("COFFERDAM_PREVIEW")
	if address == "" {
		t.Skip("COFFERDAM_PREVIEW names no address to serve at")
	}
	s := &sample{}
	switch os.Getenv("COFFERDAM_PREVIEW_SAMPLE") {
	case "empty":
		s.empty = true
	case "many":
		s.many = 30
	case "hostile":
		s.text = hostile
	}
	p := newPages(t, s)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'nonce-test'; style-src 'self' 'nonce-test'; img-src 'self' data:; connect-src 'self'; font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
		p.ServeHTTP(w, r)
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: time.Second}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	go func() { <-ctx.Done(); _ = server.Close() }()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		t.Fatal(err)
	}
}
