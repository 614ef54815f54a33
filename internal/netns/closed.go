package netns

import (
	"fmt"
	"os"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Door is what it takes to open a room that was set up closed. The zero value opens nothing.
type Door struct {
	TCP    uint16 `json:"tcp"` // ports of the planted sockets
	Packet uint16 `json:"packet"`
	Stream uint16 `json:"stream"`
	Device bool   `json:"device,omitempty"` // packets arrive by a device
}

// Door returns the door of the room that the sockets are planted in. device says that it was made for a network stack of the sandbox's own.
func (l Listeners) Door(device bool) (Door, error) {
	d := Door{Device: device}
	for _, of := range []struct {
		file *os.File
		port *uint16
	}{{l.TCP, &d.TCP}, {l.DNSPacket, &d.Packet}, {l.DNSStream, &d.Stream}} {
		bound, err := unix.Getsockname(int(of.file.Fd()))
		if err != nil {
			return Door{}, fmt.Errorf("ask for a planted socket's port: %w", err)
		}
		switch a := bound.(type) {
		case *unix.SockaddrInet4:
			*of.port = uint16(a.Port)
		case *unix.SockaddrInet6:
			*of.port = uint16(a.Port)
		}
	}
	return d, nil
}

// Open puts the rules of cfg in the place of those that let nothing through, in one step. The caller is in the room. It returns a hold of the connection to the kernel:
// who lets go of the last one, and be it by ending, waits until the kernel has freed what was replaced, which takes it about ten milliseconds.
func (d Door) Open(cfg Config) (*os.File, error) {
	if d.TCP == 0 || d.Packet == 0 || d.Stream == 0 {
		return nil, fmt.Errorf("no door to open: %+v", d)
	}
	cfg.device = d.Device
	held, err := install(cfg, ports{tcp: d.TCP, packet: d.Packet, stream: d.Stream}, true)
	if err != nil {
		return nil, fmt.Errorf("open the room: %w", err)
	}
	return held, nil
}

// close drops every packet, whoever sends it: those of processes here, and those that come by a device.
func (r rules) close() {
	drop := nftables.ChainPolicyDrop
	for name, hook := range map[string]*nftables.ChainHook{"out": nftables.ChainHookOutput, "in": nftables.ChainHookPrerouting} {
		r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw, Policy: &drop})
	}
}
