package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// proxy is somebody else's program that listens on loopback.
type proxy struct {
	port int
	cmd  *exec.Cmd
}

// startProxy writes a configuration, starts the program on it and waits until it listens. PORT and DIR in configuration and arguments are filled in.
func (b *bench) startProxy(ctx context.Context, name, config string, argv ...string) (*proxy, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(b.dir, 0o755); err != nil { // squid and tinyproxy read it as somebody else
		return nil, err
	}
	file := filepath.Join(dir, "config")
	fill := strings.NewReplacer("PORT", fmt.Sprint(port), "DIR", dir)
	if err := os.WriteFile(file, []byte(fill.Replace(config)), 0o644); err != nil {
		return nil, err
	}
	for i := range argv {
		argv[i] = fill.Replace(argv[i])
	}
	argv = append(argv, file)
	p := &proxy{port: port, cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	p.cmd.Dir = dir
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	for range 100 {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if err == nil {
			_ = c.Close() // it listens
			return p, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.stop()
	return nil, fmt.Errorf("%s does not listen", name)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (p *proxy) stop() {
	_ = p.cmd.Process.Kill() // it keeps nothing
	_ = p.cmd.Wait()         // killed, as wanted
}

// haproxy starts HAProxy in front of one server, in mode tcp or http. It shares out connections, so it keeps those to the server.
func (b *bench) haproxy(ctx context.Context, mode string, server, threads int, pin ...string) (*proxy, error) {
	config := fmt.Sprintf(`global
  nbthread %d
  maxconn 1000
defaults
  mode %s
  timeout connect 5s
  timeout client 1m
  timeout server 1m
  option splice-auto
frontend front
  bind 127.0.0.1:PORT
  default_backend back
backend back
  server only 127.0.0.1:%d
`, threads, mode, server)
	return b.startProxy(ctx, "haproxy-"+mode, config, append(pin, "haproxy", "-db", "-f")...)
}

// tinyproxy starts tinyproxy.
func (b *bench) tinyproxy(ctx context.Context, pin ...string) (*proxy, error) {
	config := `Port PORT
Listen 127.0.0.1
Timeout 60
MaxClients 500
LogFile "/dev/null"
LogLevel Critical
DisableViaHeader Yes
`
	return b.startProxy(ctx, "tinyproxy", config, append(pin, "tinyproxy", "-d", "-c")...)
}

// squid starts squid without a cache and without logs.
func (b *bench) squid(ctx context.Context) (*proxy, error) {
	return b.startProxy(ctx, "squid", "http_port 127.0.0.1:PORT\nhttp_access allow all\n"+squidQuiet, "squid", "-N", "-f")
}

// squidQuiet is the part of its configuration by which squid keeps nothing.
const squidQuiet = `cache deny all
cache_mem 8 MB
access_log none
cache_log /dev/null
cache_store_log none
pid_filename none
coredump_dir DIR
shutdown_lifetime 0 seconds
`

func urlOf(port int) string { return fmt.Sprintf("http://%s:%d/", loopback, port) }
