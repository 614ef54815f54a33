// Command canary runs inside a sandbox: it makes requests, prints every byte that comes back, and writes down all that it can read.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// job is one request.
type job struct {
	Name    string
	URL     string
	Method  string
	Headers [][2]string // variables are expanded
	Body    string
	Two     bool // HTTP/2; else HTTP/1.1, of which every byte is kept
	Wait    time.Duration
}

func main() {
	if len(os.Args) != 2 {
		fmt.Println("usage: canary DIRECTORY, with a list of jobs on standard input")
		os.Exit(2)
	}
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	var jobs []job
	if err == nil {
		err = json.Unmarshal(line, &jobs)
	}
	if err != nil {
		fmt.Println("jobs:", err)
		os.Exit(2)
	}
	perform(jobs)
	fmt.Println("=== requests are made")
	_, _ = in.ReadBytes('\n') // whoever looks from outside says when
	if err := dump(os.Args[1]); err != nil {
		fmt.Println("dump:", err)
		os.Exit(1)
	}
	fmt.Println("=== all is written down")
	_, _ = in.ReadBytes('\n')
}

// perform does the jobs, some at once, and prints what came of each as a whole.
func perform(jobs []job) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	slots := make(chan struct{}, 8)
	for _, j := range jobs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			var b bytes.Buffer
			if err := j.do(&b); err != nil {
				fmt.Fprintf(&b, "\nended with: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Printf("=== %s\n%s\n", j.Name, b.Bytes())
		})
	}
	wg.Wait()
}

func (j *job) do(w io.Writer) error {
	if j.Wait == 0 {
		j.Wait = 20 * time.Second
	}
	u, err := url.Parse(j.URL)
	if err != nil {
		return err
	}
	if j.Two {
		return j.two(w)
	}
	return j.one(w, u)
}

// one speaks HTTP/1.1 by hand.
func (j *job) one(w io.Writer, u *url.URL) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: j.Wait}, "tcp", u.Host, &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(j.Wait)); err != nil {
		return err
	}
	var head strings.Builder
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", j.method(), u.RequestURI(), u.Host)
	closing := true
	for _, h := range j.Headers {
		fmt.Fprintf(&head, "%s: %s\r\n", h[0], os.ExpandEnv(h[1]))
		closing = closing && h[0] != "Connection"
	}
	if closing {
		head.WriteString("Connection: close\r\n")
	}
	if j.Body != "" {
		fmt.Fprintf(&head, "Content-Length: %d\r\n", len(j.Body))
	}
	if _, err := io.WriteString(c, head.String()+"\r\n"+j.Body); err != nil {
		return err
	}
	_, err = io.Copy(w, c)
	return err
}

func (j *job) method() string {
	if j.Method == "" {
		return http.MethodGet
	}
	return j.Method
}

// two speaks HTTP/2.
func (j *job) two(w io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), j.Wait)
	defer cancel()
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DisableCompression: true}
	defer transport.CloseIdleConnections()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		fmt.Fprintln(w, "interim", code, h)
		return nil
	}})
	r, err := http.NewRequestWithContext(ctx, j.method(), j.URL, strings.NewReader(j.Body))
	if err != nil {
		return err
	}
	for _, h := range j.Headers {
		r.Header.Add(h[0], os.ExpandEnv(h[1]))
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	fmt.Fprintln(w, answer.Proto, answer.Status)
	_ = answer.Header.Write(w) // a buffer takes everything
	fmt.Fprintln(w)
	_, err = io.Copy(w, answer.Body)
	fmt.Fprintln(w, "\ntrailers", answer.Trailer)
	return err
}

const (
	maxFile    = 16 << 20
	maxMapping = 64 << 20
)

// dump writes down what can be read of processes and files.
func dump(dir string) error {
	out, err := os.Create(filepath.Join(dir, "processes"))
	if err != nil {
		return err
	}
	defer out.Close()
	pids, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	memories := 0
	for _, p := range pids {
		for _, name := range []string{"environ", "cmdline", "maps", "status", "stack", "mountinfo", "cgroup", "net/tcp", "auxv", "comm"} {
			if data, err := os.ReadFile(p + "/" + name); err == nil {
				fmt.Fprintf(out, "\n--- %s/%s\n%s", p, name, data)
			}
		}
		if copyMemory(out, p) {
			memories++
		}
	}
	fmt.Printf("memory of %d processes of %d\n", memories, len(pids))
	files, err := os.Create(filepath.Join(dir, "files"))
	if err != nil {
		return err
	}
	defer files.Close()
	n := 0
	err = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be read holds nothing for us
		}
		if d.IsDir() && (path == "/proc" || path == "/sys" || path == "/usr" || path == dir) {
			return fs.SkipDir
		}
		if d.Type().IsRegular() {
			if data, err := readSome(path); err == nil {
				n++
				fmt.Fprintf(files, "\n--- %s\n%s", path, data)
			}
		}
		return nil
	})
	fmt.Printf("%d files\n", n)
	return err
}

func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// copyMemory writes what can be read of a process's memory, and says whether that was anything.
func copyMemory(out io.Writer, proc string) bool {
	maps, err := os.ReadFile(proc + "/maps")
	if err != nil {
		return false
	}
	memory, err := os.Open(proc + "/mem")
	if err != nil {
		return false
	}
	defer memory.Close()
	any := false
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		from, to, ok := strings.Cut(fields[0], "-")
		first, err1 := strconv.ParseUint(from, 16, 63)
		last, err2 := strconv.ParseUint(to, 16, 63)
		if !ok || err1 != nil || err2 != nil || fields[1][0] != 'r' || strings.HasPrefix(fields[len(fields)-1], "/usr/") {
			continue
		}
		n, _ := io.Copy(out, io.NewSectionReader(memory, int64(first), int64(min(last-first, maxMapping)))) // up to what cannot be read
		any = any || n > 0
	}
	return any
}
