package policy

import (
	"net/netip"
	"net/url"
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/netname"
)

// ParseTarget reads a destination as people name one, HOST:PORT, ADDRESS:PORT, a URL, or a HOST alone, as the crossing that would go there. A host
// alone is the question for its name. Where no scheme says otherwise, port 80 is taken for plain HTTP and any other for TLS.
func ParseTarget(text string) (Crossing, error) {
	if strings.Contains(text, "://") {
		return parseURL(text)
	}
	hostText, port, err := splitPort(text)
	if err != nil {
		return Crossing{}, err
	}
	c := Crossing{Protocol: TLS, Port: port}
	if port == 80 {
		c.Protocol = HTTP
	}
	if err := c.setHost(hostText); err != nil {
		return Crossing{}, err
	}
	if port != 0 {
		return c, nil
	}
	if c.Host == "" {
		return Crossing{}, fault.New(fault.Invalid, "%.200q names no port", text).WithHint("write ADDRESS:PORT, as in 10.1.2.3:443")
	}
	c.Protocol = DNS
	return c, nil
}

// setHost takes a name or an address.
func (c *Crossing) setHost(text string) error {
	if a, err := netip.ParseAddr(text); err == nil {
		if a.Zone() != "" {
			return fault.New(fault.Invalid, "%.200q has a zone, which names an interface of this host", text).WithHint("leave it out")
		}
		c.Addr = a.Unmap()
		return nil
	}
	h, err := netname.ParseHost(text)
	c.Host = h
	return err
}

func parseURL(text string) (Crossing, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return Crossing{}, fault.New(fault.Invalid, "%.200q is no URL with a host", text).WithHint("write it as in https://registry.example.com/path")
	}
	c := Crossing{Protocol: Unknown}
	switch u.Scheme {
	case "http", "ws":
		c.Protocol, c.Port, c.Method, c.Path = HTTP, 80, "GET", u.EscapedPath()
	case "https", "wss":
		c.Protocol, c.Port, c.Method, c.Path = HTTPS, 443, "GET", u.EscapedPath()
	case "ssh":
		c.Port = 22
	case "git":
		c.Port = 9418
	}
	if port := u.Port(); port != "" {
		if c.Port, err = netname.ParsePort(port); err != nil {
			return Crossing{}, err
		}
	}
	if c.Port == 0 {
		return Crossing{}, fault.New(fault.Invalid, "%.200q names no port, and its scheme has none that is known here", text).
			WithHint("write the port into the URL, as in %.40s://host.example.com:1234", u.Scheme)
	}
	if err := c.setHost(u.Hostname()); err != nil {
		return c, err
	}
	if c.Host == "" && c.Protocol == HTTPS { // requests to a raw address are not read
		c.Protocol, c.Method, c.Path = TLS, "", ""
	}
	if path, err := netname.NormalisePath("/" + strings.TrimPrefix(c.Path, "/")); err == nil && c.Method != "" {
		c.Path = path.String()
	}
	return c, nil
}
