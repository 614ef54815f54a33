package netns

import (
	"errors"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ports are where the planted sockets listen.
type ports struct{ tcp, packet, stream uint16 }

// TableName is the nftables table in every sandbox's namespace, and RefusedCounter the counter of what the kernel refused there.
const (
	TableName      = "cofferdam"
	RefusedCounter = "refused"
)

// rules collects the chains of the table.
type rules struct {
	conn  *nftables.Conn
	table *nftables.Table
	hook  *nftables.ChainHook // where the sandbox's packets come by
	own   []netip.Prefix      // destinations that stay inside
}

// install puts the whole table in place in one atomic batch. replace takes away the one that is there, and returns the connection to the kernel, which is closed otherwise.
func install(cfg Config, p ports, replace bool) (*os.File, error) {
	var socket *netlink.Conn
	taken := nftables.WithSockOptions(func(c *netlink.Conn) error { socket = c; return nil })
	conn, err := nftables.New(nftables.AsLasting(), taken) // made here, in the caller's namespace
	if err != nil {
		return nil, err
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	if replace {
		conn.DelTable(table)
	}
	r := rules{conn: conn, hook: nftables.ChainHookOutput, own: own(), table: conn.AddTable(table)}
	if cfg.Closed {
		r.close()
		return nil, r.commit()
	}
	conn.AddObj(&nftables.NamedObj{Table: r.table, Name: RefusedCounter, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	if cfg.device {
		r.hook, r.own = nftables.ChainHookPrerouting, nil // nothing that arrives may stay here
		r.believe()
	}
	r.redirect(cfg, p)
	r.refuse()
	if !replace {
		return nil, r.commit()
	}
	held, err := duplicate(socket)
	if err != nil {
		return nil, err
	}
	if err := r.commit(); err != nil {
		return nil, closing(held, err)
	}
	return held, nil
}

// commit sends the batch, from a goroutine of its own: the library takes each of dozens of answers with the help of another goroutine, and set-up, which is bound to
// its thread, would change threads twice for each.
func (r rules) commit() error {
	done := make(chan error)
	go func() {
		err := r.conn.Flush()
		_ = r.conn.CloseLasting() // all is answered
		done <- err
	}()
	return <-done
}

// duplicate returns another hold of a connection.
func duplicate(c *netlink.Conn) (f *os.File, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var n int
		if n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
			f = os.NewFile(uintptr(n), "rules")
		}
	})
	return f, errors.Join(controlErr, err)
}

// own lists the destinations that stay inside.
func own() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
		netip.PrefixFrom(Own4, 32), netip.PrefixFrom(Own6, 128),
	}
}

// believe lets nothing arrive that does not come from the sandbox's own addresses. What stacks send by themselves to find or tell each other is dropped without a
// word: it could not leave the cable, and both ends know all that they need. All else is forged, by somebody who writes whole frames: it goes on record.
func (r rules) believe() {
	chain := r.conn.AddChain(&nftables.Chain{
		Name: "believe", Table: r.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	r.add(chain, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(loopback)},
	}, verdict(expr.VerdictAccept))
	const groupReport, routerSolicitation, neighbourAdvertisement, groupReport2 = 131, 133, 136, 143 // RFC 4861, RFC 2710, RFC 3810
	for _, span := range [][2]byte{{groupReport, groupReport + 1}, {routerSolicitation, neighbourAdvertisement}, {groupReport2, groupReport2}} {
		r.add(chain, protocol(unix.IPPROTO_ICMPV6), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: span[:1], ToData: span[1:]},
		}, verdict(expr.VerdictDrop))
	}
	r.add(chain, protocol(unix.IPPROTO_IGMP), verdict(expr.VerdictDrop))
	r.add(chain, source(netip.PrefixFrom(Own4, 32)), verdict(expr.VerdictAccept))
	r.add(chain, source(netip.PrefixFrom(Own6, 128)), verdict(expr.VerdictAccept))
	r.add(chain, []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: RefusedCounter}}, logged(""), verdict(expr.VerdictDrop))
}

// redirect sends DNS and reachable TCP destinations to the planted sockets.
func (r rules) redirect(cfg Config, p ports) {
	chain := r.conn.AddChain(&nftables.Chain{
		Name: "redirect", Table: r.table, Type: nftables.ChainTypeNAT,
		Hooknum: r.hook, Priority: nftables.ChainPriorityNATDest,
	})
	for _, prefix := range r.own {
		r.add(chain, destination(prefix), verdict(expr.VerdictReturn))
	}
	r.add(chain, ipv4(), protocol(unix.IPPROTO_UDP), destinationPort(53), redirectTo(p.packet))
	r.add(chain, ipv4(), protocol(unix.IPPROTO_TCP), destinationPort(53), redirectTo(p.stream))
	if cfg.Everything {
		r.add(chain, protocol(unix.IPPROTO_TCP), redirectTo(p.tcp))
		return
	}
	for _, prefix := range append([]netip.Prefix{Synthetic4, Synthetic6}, cfg.Networks...) {
		r.add(chain, protocol(unix.IPPROTO_TCP), destination(prefix), redirectTo(p.tcp))
	}
}

// Held is the prefix of logged packets that the kernel dropped without an answer: the gateway refuses them, at most heldRate a second after the first heldBurst.
const (
	Held      = "held"
	heldRate  = 200
	heldBurst = 500
)

// refuse lets loopback, redirected packets and the gateway's refusals through, counts and reports the rest, and drops or refuses it.
func (r rules) refuse() {
	chain := r.conn.AddChain(&nftables.Chain{
		Name: "refuse", Table: r.table, Type: nftables.ChainTypeFilter,
		Hooknum: r.hook, Priority: nftables.ChainPriorityFilter,
	})
	r.add(chain, marked(answerMark), verdict(expr.VerdictAccept))
	r.add(chain, tracked(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	const statusDNAT = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
	r.add(chain, tracked(expr.CtKeySTATUS, statusDNAT), verdict(expr.VerdictAccept))
	for _, prefix := range r.own {
		r.add(chain, destination(prefix), verdict(expr.VerdictAccept))
	}
	r.add(chain, []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: RefusedCounter}})
	// A TCP client waits for its refusal with an open socket, whose process can be found; who sends otherwise is told by the drop itself (EPERM).
	r.add(chain, []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Unit: expr.LimitTimeSecond, Rate: heldRate, Burst: heldBurst}}, logged(Held), verdict(expr.VerdictDrop))
	r.add(chain, logged(""))
	r.add(chain, protocol(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	r.add(chain, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}})
}

func (r rules) add(chain *nftables.Chain, parts ...[]expr.Any) {
	var exprs []expr.Any
	for _, part := range parts {
		exprs = append(exprs, part...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: exprs})
}

// destination matches packets whose destination lies in prefix, of the prefix's family only.
func destination(prefix netip.Prefix) []expr.Any { return address(prefix, 16, 24) } // RFC 791, RFC 8200

// source likewise.
func source(prefix netip.Prefix) []expr.Any { return address(prefix, 12, 8) }

// address matches an address at its place in the IPv4 or IPv6 header.
func address(prefix netip.Prefix, offset4, offset6 uint32) []expr.Any {
	prefix = prefix.Masked()
	nfproto, offset := byte(unix.NFPROTO_IPV4), offset4
	if prefix.Addr().Is6() {
		nfproto, offset = unix.NFPROTO_IPV6, offset6
	}
	address := prefix.Addr().AsSlice()
	length := uint32(len(address))
	mask := make([]byte, length)
	for i := range prefix.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(networkProtocol(nfproto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address},
	)
}

func ipv4() []expr.Any { return networkProtocol(unix.NFPROTO_IPV4) }

func networkProtocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func protocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func destinationPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

func redirectTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}

// tracked matches when any of bits is set in a connection-tracking value.
func tracked(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// logged sends the packet's head to RefusedGroup.
func logged(prefix string) []expr.Any {
	l := &expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN, Group: RefusedGroup, Snaplen: refusedHead}
	if prefix != "" {
		l.Key |= 1 << unix.NFTA_LOG_PREFIX
		l.Data = []byte(prefix)
	}
	return []expr.Any{l}
}

func marked(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
