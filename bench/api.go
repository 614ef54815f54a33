package main

import (
	"crypto/rand"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
)

// realToken is what the API wants to see. It lies in the store, in the configuration of what is compared, and with who asks directly; never inside.
const realToken = "bench-real-5b1d0c9f2e7a4d63"

// serveAPI answers over TLS, in HTTP/1.1 and HTTP/2, only those who hold the credential. It ends with its listener.
func serveAPI(l net.Listener, certificate tls.Certificate) {
	noise := make([]byte, chunk)
	_, _ = rand.Read(noise) // never fails since Go 1.24
	small := make([]byte, 100)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/small", func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = []string{"text/plain"}
		_, _ = w.Write(small) // the client counts
	})
	mux.HandleFunc("GET /v1/down/{length}", func(w http.ResponseWriter, r *http.Request) {
		left, err := strconv.ParseInt(r.PathValue("length"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header()["Content-Length"], w.Header()["Content-Type"] = []string{r.PathValue("length")}, []string{"application/octet-stream"}
		for ; left > 0 && err == nil; left -= chunk {
			_, err = w.Write(noise[:min(left, chunk)]) // the client counts
		}
	})
	mux.HandleFunc("POST /v1/up", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r.Body}, make([]byte, chunk))
		if err != nil {
			panic(http.ErrAbortHandler) // net/http's way to break a stream off
		}
		_, _ = io.WriteString(w, strconv.FormatInt(n, 10)) // the client compares
	})
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+realToken {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			mux.ServeHTTP(w, r)
		}),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		ErrorLog:  log.New(io.Discard, "", 0), // clients leave as they please
	}
	_ = s.ServeTLS(l, "", "") // the listener's end
}
