package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Hit is one thing that reached the world.
type Hit struct {
	Network string `json:"network"` // tcp, udp, dns, http, unix, fifo
	Local   string `json:"local"`   // where it arrived, or the name that was asked for
	Port    int    `json:"port,omitempty"`
	Data    string `json:"data,omitempty"`
}

// around is the internet as the attack suite needs it: a network namespace in which every address there is answers, on some ports, and in
// which everything that arrives is reported. It is also the machine around the sandbox: its loopback, its sockets, its resolver.
type around struct {
	mu  sync.Mutex
	out *json.Encoder
	tls *tls.Config
}

// world serves until standard input ends. The caller has put it into a network and a mount namespace of its own. Arguments: a directory for
// sockets, then ports.
func world(args []string) error {
	if len(args) < 2 {
		return errors.New("want a directory and ports")
	}
	if err := prepare(args[0]); err != nil {
		return err
	}
	config, err := certificate()
	if err != nil {
		return err
	}
	w := &around{out: json.NewEncoder(os.Stdout), tls: config}
	for _, text := range args[1:] {
		port, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		if err := w.listen(port); err != nil {
			return err
		}
	}
	if err := w.local(args[0]); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
	return nil
}

// prepare makes every address local, and names this world's resolver. It changes only the namespaces that it is in, and makes sure of that.
func prepare(dir string) error {
	if links, err := net.Interfaces(); err != nil || len(links) != 1 || links[0].Flags&net.FlagUp != 0 {
		return fmt.Errorf("not in a fresh network namespace: %v %v", links, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	resolv := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 192.0.2.53\nsearch corp.example.com\noptions attempts:1 timeout:2\n"), 0o644); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		return err
	}
	if err := unix.Mount(resolv, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for _, line := range []string{
		"link set lo up", "addr add 10.77.0.1/24 dev lo", "route add local default dev lo table local", "-6 addr add 2001:db8:77::1/64 dev lo nodad", "-6 route add local default dev lo table local",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
}

func certificate() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "world"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, err
}

func (w *around) hit(h Hit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.out.Encode(h) // a test that went away does not read
}

// listen serves one port by TCP and UDP, on every address.
func (w *around) listen(port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort("::", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(c)
		}
	}()
	control := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1) // shown in the report; a test without it fails
			_ = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		})
	}
	for network, address := range map[string]string{"udp4": "0.0.0.0", "udp6": "::"} {
		config := net.ListenConfig{Control: control}
		p, err := config.ListenPacket(context.Background(), network, net.JoinHostPort(address, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		go w.packets(p.(*net.UDPConn), port)
	}
	return nil
}

// packets answers datagrams from the address that they were sent to.
func (w *around) packets(c *net.UDPConn, port int) {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, m, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		local, source := destination(oob[:m])
		reply := []byte("world")
		if port == 53 {
			reply = w.name(buf[:n])
		} else {
			w.hit(Hit{Network: "udp", Local: local, Port: port, Data: string(buf[:n])})
		}
		_, _, _ = c.WriteMsgUDPAddrPort(reply, source, from) // a lost answer shows in the test
	}
}

func destination(oob []byte) (string, []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return "", nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO:
			a := [4]byte(m.Data[8:12])
			return netip.AddrFrom4(a).String(), unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a})
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO:
			a := [16]byte(m.Data[:16])
			return netip.AddrFrom16(a).String(), unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a})
		}
	}
	return "", nil
}

// zone is what the world's resolver knows. Below addr.example.com a name's first label is a hexadecimal address; below wild.example.com every name exists.
func zone(name string) []netip.Addr {
	known := map[string][]string{
		"allowed.example.com.": {"93.184.216.34", "2606:2800:220:1::34"}, "other.example.com.": {"93.184.216.36"}, "opaque.example.com.": {"93.184.216.37"},
		"v6only.example.com.": {"2606:2800:220:1::38"}, "mixed.example.com.": {"127.0.0.1", "10.77.0.1", "93.184.216.39"}, "inward.example.com.": {"127.0.0.1"},
		"denied.example.com.": {"93.184.216.66"}, "mozilla.cloudflare-dns.com.": {"93.184.216.67"},
	}
	var found []netip.Addr
	for _, text := range known[name] {
		found = append(found, netip.MustParseAddr(text))
	}
	label, rest, _ := strings.Cut(name, ".")
	switch rest {
	case "addr.example.com.":
		if raw, err := hex.DecodeString(label); err == nil {
			if a, ok := netip.AddrFromSlice(raw); ok {
				found = append(found, a)
			}
		}
	case "wild.example.com.":
		found = append(found, netip.MustParseAddr("93.184.216.35"))
	}
	return found
}

// name answers one question, and reports it.
func (w *around) name(query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		w.hit(Hit{Network: "dns", Local: "?", Data: hex.EncodeToString(query)})
		return nil
	}
	q, err := p.Question()
	if err != nil {
		w.hit(Hit{Network: "dns", Local: "?", Data: hex.EncodeToString(query)})
		return nil
	}
	w.hit(Hit{Network: "dns", Local: q.Name.String(), Data: q.Type.String()})
	found := zone(q.Name.String())
	answer := dnsmessage.Header{ID: h.ID, Response: true, RecursionAvailable: true}
	if len(found) == 0 {
		answer.RCode = dnsmessage.RCodeNameError
	}
	b := dnsmessage.NewBuilder(nil, answer)
	err = errors.Join(b.StartQuestions(), b.Question(q), b.StartAnswers())
	for _, a := range found {
		head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			err = errors.Join(err, b.AResource(head, dnsmessage.AResource{A: a.As4()}))
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			err = errors.Join(err, b.AAAAResource(head, dnsmessage.AAAAResource{AAAA: a.As16()}))
		}
	}
	reply, err2 := b.Finish()
	if err != nil || err2 != nil {
		return nil
	}
	return reply
}

// serve is every TCP server of the world: TLS, HTTP, or an echo.
func (w *around) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // fails only for a closed connection
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	to := Hit{Network: "tcp", Local: local.Addr().Unmap().String(), Port: int(local.Port())}
	r := bufio.NewReader(c)
	first, err := r.Peek(1)
	if err != nil {
		w.hit(to)
		return
	}
	if first[0] == 0x16 {
		secure := tls.Server(&buffered{c, r}, w.tls)
		if err := secure.Handshake(); err != nil {
			to.Data = "tls " + err.Error()
			w.hit(to)
			return
		}
		to.Data = "tls " + secure.ConnectionState().ServerName
		w.hit(to)
		w.talk(secure, bufio.NewReader(secure), to)
		return
	}
	w.talk(c, r, to)
}

// buffered reads what was peeked at.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// talk answers requests, or lines, and reports each. It splits messages as naively as a vulnerable server would: at empty lines, bodies unread.
func (w *around) talk(c io.Writer, r *bufio.Reader, to Hit) {
	for {
		line, err := r.ReadString('\n')
		if line == "" && err != nil {
			return
		}
		if !strings.Contains(line, "HTTP/1") {
			to.Network, to.Data = "tcp", line
			w.hit(to)
			if _, err := io.WriteString(c, "world\n"); err != nil {
				return
			}
			continue
		}
		host := ""
		for {
			field, err := r.ReadString('\n')
			if err != nil || strings.TrimSpace(field) == "" {
				break
			}
			if name, value, _ := strings.Cut(field, ":"); strings.EqualFold(name, "host") {
				host = strings.TrimSpace(value)
			}
		}
		to.Network, to.Data = "http", strings.TrimSpace(line)+" host="+host
		w.hit(to)
		reply := "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nworld\n"
		if strings.Contains(line, "/redirect") {
			reply = "HTTP/1.1 302 Found\r\nLocation: http://denied.example.com/redirected\r\nContent-Length: 0\r\n\r\n"
		}
		if _, err := io.WriteString(c, reply); err != nil {
			return
		}
	}
}

// local serves what a machine has beside its network: sockets with names in the file system and without, and a pipe.
func (w *around) local(dir string) error {
	unix.Umask(0)
	for _, name := range []string{"@cofferdam-attack-world", filepath.Join(dir, "world.sock")} {
		l, err := net.Listen("unix", name)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w.hit(Hit{Network: "unix", Local: name})
				_, _ = io.WriteString(c, "host secret\n")
				_ = c.Close()
			}
		}()
	}
	path := filepath.Join(dir, "world.pipe")
	if err := unix.Mkfifo(path, 0o666); err != nil {
		return err
	}
	pipe, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 100)
		for {
			n, err := pipe.Read(buf)
			if err != nil {
				return
			}
			w.hit(Hit{Network: "fifo", Local: path, Data: string(buf[:n])})
		}
	}()
	return nil
}
