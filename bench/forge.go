package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// gitUser is who the token belongs to.
const gitUser = "agent"

// forge is the program that serves the repositories below a folder by git's own http-backend, over TLS, to who has the token.
// It says where and ends with its standard input.
func forge(ctx context.Context, root string, stdin io.Reader, stdout io.Writer) error {
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	go serveForge(l, certificate, root) // ends with the listener, at the latest with the process
	if err := writeLine(stdout, addresses{Git: l.Addr().(*net.TCPAddr).Port, Certificate: certificatePEM(certificate)}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, stdin)
	return errors.Join(err, ctx.Err())
}

// serveForge speaks HTTP/1.1 with everybody, as the gateway does with upstreams: over HTTP/2 libcurl would wait for windows.
func serveForge(l net.Listener, certificate tls.Certificate, root string) {
	var only http.Protocols
	only.SetHTTP1(true)
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != gitUser || password != realToken {
				w.Header().Set("WWW-Authenticate", `Basic realm="bench"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			backend(w, r, root)
		}),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		Protocols: &only,
		ErrorLog:  log.New(io.Discard, "", 0), // clients leave as they please
	}
	_ = s.ServeTLS(l, "", "") // the listener's end
}

// backendTime bounds one request.
const backendTime = 5 * time.Minute

// backend runs git http-backend and passes both bodies on as they come. net/http/cgi would not do: it refuses bodies without a length.
func backend(w http.ResponseWriter, r *http.Request, root string) {
	// What receive-pack says while it reads must not end the reading, and its end must not be taken for the client's.
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/1.1 has it
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), backendTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", "http-backend")
	cmd.Env = append(forgeEnvironment(root), gatewayInterface(r, root)...)
	cmd.WaitDelay = 10 * time.Second
	in, err := cmd.StdinPipe()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		defer in.Close()                                                                                // it reads the end
		_, _ = io.CopyBuffer(struct{ io.Writer }{in}, struct{ io.Reader }{r.Body}, make([]byte, chunk)) // what is missing, git misses
	}()
	answerOf(w, bufio.NewReaderSize(stdout, chunk))
	_ = r.Body.Close() // ends the copying, if git has ended before the client
	<-over
	_ = cmd.Wait() // what it came to is in the answer
}

// gatewayInterface is a request in the variables of RFC 3875.
func gatewayInterface(r *http.Request, root string) []string {
	env := []string{
		"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=" + gitUser, "REMOTE_ADDR=" + loopback, "REQUEST_METHOD=" + r.Method, "PATH_INFO=" + r.URL.Path,
		"QUERY_STRING=" + r.URL.RawQuery, "CONTENT_TYPE=" + r.Header.Get("Content-Type"), "SERVER_PROTOCOL=" + r.Proto,
		"HTTP_CONTENT_ENCODING=" + r.Header.Get("Content-Encoding"), "GIT_PROTOCOL=" + r.Header.Get("Git-Protocol"),
	}
	if r.ContentLength >= 0 {
		env = append(env, "CONTENT_LENGTH="+strconv.FormatInt(r.ContentLength, 10))
	}
	return env
}

// answerOf passes on what a program of the common gateway interface answers.
func answerOf(w http.ResponseWriter, out *bufio.Reader) {
	head, err := textproto.NewReader(out).ReadMIMEHeader()
	if err != nil {
		http.Error(w, "git http-backend: "+err.Error(), http.StatusInternalServerError)
		return
	}
	status := http.StatusOK
	if line := head.Get("Status"); line != "" {
		if status, err = strconv.Atoi(strings.Fields(line)[0]); err != nil {
			status = http.StatusInternalServerError
		}
	}
	for field, values := range head {
		if field != "Status" {
			w.Header()[field] = values
		}
	}
	w.WriteHeader(status)
	flush := http.NewResponseController(w)
	buffer := make([]byte, chunk)
	for {
		n, err := out.Read(buffer)
		if n > 0 {
			if _, failed := w.Write(buffer[:n]); failed != nil {
				_, _ = io.Copy(io.Discard, out) // so that git ends
				return
			}
			if out.Buffered() == 0 {
				_ = flush.Flush() // an error shows in the next Write
			}
		}
		if err != nil {
			return
		}
	}
}

// host starts the forge on a folder.
func (b *bench) host(ctx context.Context, root string) (*serving, error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	return b.launch(ctx, b.self, "forge", root)
}
