package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const mitmproxyName = "mitmproxy"

// interceptor is somebody else's proxy that ends TLS and puts the same header into each request.
type interceptor struct {
	*proxy
	name      string
	protocols []string
}

// interceptors starts those that are there. trust is a file with the server's certificate.
func (b *bench) interceptors(ctx context.Context, trust string, pin ...string) (running []interceptor, stop func()) {
	if b.have("mitmdump", "mitmproxy") {
		if p, err := b.mitmproxy(ctx, trust, pin...); err != nil {
			b.skip(mitmproxyName, err.Error())
		} else {
			running = append(running, interceptor{p, version(ctx, "mitmdump", "--version"), []string{http1, http2}})
		}
	}
	if b.have("squid", "squid-openssl") {
		if p, err := b.squidBump(ctx, trust, pin...); err != nil {
			b.skip("squid, ssl-bump", err.Error())
		} else {
			running = append(running, interceptor{p, version(ctx, "squid", "-v") + ", ssl-bump", []string{http1}}) // it speaks no HTTP/2
		}
	}
	return running, func() {
		for _, p := range running {
			p.stop()
		}
	}
}

// mitmproxy starts mitmproxy without a screen. Bodies pass as they come: without stream_large_bodies it would hold each one whole.
func (b *bench) mitmproxy(ctx context.Context, trust string, pin ...string) (*proxy, error) {
	addon := fmt.Sprintf("def requestheaders(flow):\n    flow.request.headers[\"Authorization\"] = \"Bearer %s\"\n", realToken)
	return b.startProxy(ctx, "mitmproxy", addon, append(pin, "mitmdump", "-q", "--listen-host", "127.0.0.1", "--listen-port", "PORT", "--set", "confdir=DIR",
		"--set", "stream_large_bodies=64k", "--set", "ssl_verify_upstream_trusted_ca="+trust, "-s")...)
}

// version is what a program calls itself: name and number.
func version(ctx context.Context, program, flag string) string {
	out, _ := exec.CommandContext(ctx, program, flag).Output() // no version is no reason to leave it out
	words := regexp.MustCompile(`^(\w+).* ([0-9][0-9.]*)`).FindStringSubmatch(firstLine(string(out)))
	if words == nil {
		return program
	}
	return strings.ToLower(words[1]) + " " + words[2]
}

// squidBump starts a squid that ends TLS, where it was built with OpenSSL.
func (b *bench) squidBump(ctx context.Context, trust string, pin ...string) (*proxy, error) {
	built, err := exec.CommandContext(ctx, "squid", "-v").Output()
	if err != nil {
		return nil, fmt.Errorf("squid -v: %w", err)
	}
	if !bytes.Contains(built, []byte("--enable-ssl-crtd")) {
		return nil, errors.New("this one was built without OpenSSL; on Debian: apt-get install squid-openssl")
	}
	maker, err := certificateMaker()
	if err != nil {
		return nil, err
	}
	authority := filepath.Join(b.dir, "squid-authority.pem")
	if err := writeAuthority(authority); err != nil {
		return nil, err
	}
	store := filepath.Join(b.dir, "squid-certificates-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	if out, err := exec.CommandContext(ctx, maker, "-c", "-s", store, "-M", "4MB").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make squid's store of certificates: %w: %s", err, firstLine(string(out)))
	}
	if err := giveToProxy(store, authority); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`http_port 127.0.0.1:PORT ssl-bump tls-cert=%s generate-host-certificates=on dynamic_cert_mem_cache_size=4MB
sslcrtd_program %s -s %s -M 4MB
sslcrtd_children 1 startup=1 idle=1
acl hello at_step SslBump1
ssl_bump peek hello
ssl_bump bump all
tls_outgoing_options cafile=%s
request_header_access Authorization deny all
request_header_replace Authorization Bearer %s
http_access allow all
`, authority, maker, store, trust, realToken)
	return b.startProxy(ctx, "squid-bump", config+squidQuiet, append(pin, "squid", "-N", "-f")...)
}

// certificateMaker finds squid's helper, which is on no search path.
func certificateMaker() (string, error) {
	for _, dir := range []string{"/usr/lib/squid", "/usr/lib64/squid", "/usr/libexec/squid", "/usr/local/libexec", "/usr/local/squid/libexec"} {
		path := filepath.Join(dir, "security_file_certgen")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("squid's security_file_certgen is nowhere to be found")
}

// writeAuthority writes a new authority with its key, for squid to sign with.
func writeAuthority(file string) error {
	c, err := selfSigned()
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), certificatePEM(c)...), 0o600)
}

// giveToProxy lets squid, which leaves root for the user proxy, have its files. Nobody else needs that.
func giveToProxy(store, authority string) error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("proxy")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	if err := os.Chown(authority, uid, -1); err != nil {
		return err
	}
	return filepath.WalkDir(store, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, -1)
	})
}
