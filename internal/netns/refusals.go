package netns

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Constants of linux/netfilter/nfnetlink_log.h that x/sys does not have.
const (
	nfulMsgConfig     = 1
	nfulaCfgCmd       = 1
	nfulaCfgMode      = 2
	nfulaCfgQThresh   = 5
	nfulaCfgFlags     = 6
	nfulCfgFlagSeq    = 1
	nfulCfgCmdBind    = 1
	nfulCopyPacket    = 2
	refusedHead       = 128 // bytes of a refused packet that are looked at: IPv6 header, extensions and the ports
	refusedRecvBuffer = 1 << 20
)

// refusals subscribes to an NFLOG group of this namespace. The socket goes on working after the subscriber lost its rights over the namespace.
func refusals(group uint16) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "refused")
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, closing(file, err)
	}
	bind := []byte{nfulCfgCmdBind}
	mode := binary.BigEndian.AppendUint32(nil, refusedHead)
	mode = append(mode, nfulCopyPacket, 0)
	atOnce := binary.BigEndian.AppendUint32(nil, 1)                // without it the kernel gathers heads for a second
	numbered := binary.BigEndian.AppendUint16(nil, nfulCfgFlagSeq) // so that the reader sees how many it lost
	for _, step := range []struct {
		kind  uint16
		value []byte
	}{{nfulaCfgCmd, bind}, {nfulaCfgMode, mode}, {nfulaCfgQThresh, atOnce}, {nfulaCfgFlags, numbered}} {
		body := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}
		body = binary.BigEndian.AppendUint16(body, group)
		body = attribute(body, step.kind, step.value)
		if err := exchange(fd, message(unix.NFNL_SUBSYS_ULOG<<8|nfulMsgConfig, 0, body)); err != nil {
			return nil, closing(file, fmt.Errorf("configure NFLOG group %d: %w", group, err))
		}
	}
	// A larger buffer loses fewer heads in a flood; the kernel may grant less, and the gateway records what was lost.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, refusedRecvBuffer)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, closing(file, err)
	}
	return file, nil
}

// answerMark is the mark on packets of the gateway's, by which the rules let them through. Nothing inside can set one: that takes CAP_NET_ADMIN or CAP_NET_RAW.
const answerMark = 0x0cf0d

// answers opens a raw socket of this namespace that sends whole packets with answerMark. It goes on working after its owner lost the right to make one:
// what its owner can reach by it is this namespace's loopback. It takes only packets of protocol 255, which nothing inside can send.
func answers(family int) (*os.File, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW) // which means: with its own IP header, raw(7)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "answers")
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, answerMark); err != nil {
		return nil, closing(file, err)
	}
	return file, nil
}
