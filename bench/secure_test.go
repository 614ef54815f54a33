package main

import (
	"crypto/tls"
	"net"
	"os"
	"strings"
	"testing"
)

// api starts the API in this process and returns a task that asks it directly.
func api(t *testing.T) task {
	t.Helper()
	certificate, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go serveAPI(l, certificate)
	return task{Host: loopback, Port: l.Addr().(*net.TCPAddr).Port, Token: realToken}
}

// TestAPI has every task of the API carried out: with the credential it yields values, without it, as where an interceptor does not work, an error.
func TestAPI(t *testing.T) {
	direct := api(t)
	for _, protocol := range []string{http1, http2} {
		for _, c := range []struct {
			task   task
			values int
		}{
			{task{Do: "ask", Count: 3}, 3},
			{task{Do: "ask anew", Count: 2}, 2},
			{task{Do: "ask at once", Count: 20, Clients: 4}, 1},
			{task{Do: "bulk", Count: 3<<20 + 1, Down: true}, 1},
			{task{Do: "bulk", Count: 3<<20 + 1}, 1},
		} {
			c.task.Host, c.task.Port, c.task.Protocol, c.task.Token = direct.Host, direct.Port, protocol, realToken
			values, err := c.task.carryOut()
			if err != nil || len(values) != c.values || values[0] <= 0 {
				t.Errorf("%+v: %v, %v", c.task, values, err)
			}
			c.task.Token = "of-no-worth"
			if _, err := c.task.carryOut(); err == nil || !strings.Contains(err.Error(), "401") {
				t.Errorf("%+v: %v", c.task, err)
			}
		}
	}
}

// TestSecureProtocol refuses a connection in another protocol: it would be measured under a wrong name.
func TestSecureProtocol(t *testing.T) {
	certificate, err := selfSigned()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go accept(l, func(c net.Conn) { _ = c.(*tls.Conn).Handshake() })
	for protocol, fits := range map[string]bool{http1: true, http2: false} {
		c, err := task{Protocol: protocol}.secure(l.Addr().String())
		if (err == nil) != fits {
			t.Errorf("%s: %v", protocol, err)
		}
		if c != nil {
			_ = c.Close()
		}
	}
}

func TestResident(t *testing.T) {
	now, err := resident(os.Getpid(), "VmRSS:")
	if err != nil || now < 1 || now > 1000 {
		t.Errorf("this test holds %v MiB, %v", now, err)
	}
	most, err := resident(os.Getpid(), "VmHWM:")
	if err != nil || most < now-1 { // the kernel counts in batches
		t.Errorf("and held %v MiB, %v", most, err)
	}
	if _, err := resident(os.Getpid(), "VmNothing:"); err == nil {
		t.Error("a size that there is not")
	}
}
