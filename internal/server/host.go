package server

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// hostNames are the names by which the service may be called. A page of another site, whose name was made to point here (DNS rebinding), and a forged
// Host that would end up in a link, both carry another one.
func hostNames(base *url.URL, more []string) (map[string]bool, error) {
	names := map[string]bool{strings.ToLower(base.Hostname()): true}
	for _, n := range more {
		if n == "" || strings.ContainsAny(n, "/:*@ ") {
			return nil, fmt.Errorf("host name %q: want a bare name, without port or pattern", n)
		}
		names[strings.ToLower(n)] = true
	}
	return names, nil
}

// ours says whether the request's Host is one of our names. Loopback's own names count where the connection itself is on loopback: nobody else's pages
// have those names.
func (s *Server) ours(r *http.Request) bool {
	host := hostOnly(r.Host)
	if s.names[host] {
		return true
	}
	return loopbackName(host) && onLoopback(r)
}

// hostOnly takes a Host apart; "" for what is none.
func hostOnly(host string) string {
	u, err := url.Parse("//" + host)
	if err != nil || u.Host != host || u.User != nil || u.Path != "" {
		return ""
	}
	return strings.ToLower(u.Hostname())
}

func loopbackName(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

func onLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	if _, ok := local.(*net.UnixAddr); ok {
		return true
	}
	a, err := netip.ParseAddrPort(local.String())
	return err == nil && a.Addr().Unmap().IsLoopback()
}

// client says where a request came from and whether it was encrypted on the way. Headers count only from trusted proxies, and the right-most address that
// is not one of theirs is the client's: everything left of it anybody can write.
func (s *Server) client(r *http.Request) (from netip.Addr, encrypted bool) {
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		from = a.Addr().Unmap().WithZone("")
	}
	encrypted = r.TLS != nil
	if !s.trusted(from) {
		return from, encrypted
	}
	switch r.Header.Get("X-Forwarded-Proto") {
	case "https":
		encrypted = true
	case "http":
		encrypted = false
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		a, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		from = a.Unmap().WithZone("")
		if !s.trusted(from) {
			break
		}
	}
	return from, encrypted
}

func (s *Server) trusted(a netip.Addr) bool {
	for _, p := range s.proxies {
		if a.IsValid() && p.Contains(a) {
			return true
		}
	}
	return false
}

// neighbourhood is what counts as one client for limits: an IPv4 address, or an IPv6 /64, of which one machine has all addresses.
func neighbourhood(a netip.Addr) string {
	if a.Is6() && !a.Is4In6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
