package rootfs

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Kind says how a path of the host is kept out of a sandbox's view.
type Kind uint8

// The kinds. The zero value hides a whole directory.
const (
	EmptyDir Kind = iota // an empty, writable directory stands in its place
	Absent               // nothing is there
)

// Hidden is one path of the host that a sandbox must not see.
type Hidden struct {
	// Path is absolute; its last element may be a pattern as in path.Match.
	Path string
	Kind Kind
	// Mode is the stand-in directory's mode; 0 means 0755.
	Mode uint32
	// Keep makes the immediate subdirectories of the host's directory anew, empty: some programs expect theirs.
	Keep bool
	// Reason says what an attacker would gain.
	Reason string
}

// System are the entries of the host's root directory that a sandbox sees. Everything else there is absent: what is not known to be the system may be anything.
func System() []string {
	return []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt", "var", "nix", "gnu"}
}

// Hide lists what the view of the host's root file system leaves out.
func Hide() []Hidden {
	return []Hidden{
		{Path: "/root", Mode: 0o700, Reason: "root's home: keys, shell history, tokens of every tool"},
		{Path: "/var/home", Reason: "people's homes, on systems with a fixed root"},
		{Path: "/var/roothome", Mode: 0o700, Reason: "root's home, on systems with a fixed root"},
		{Path: "/usr/home", Reason: "people's homes"},
		{Path: "/home", Reason: "people's homes: keys, browsers, tokens of every tool"},
		{Path: "/run", Reason: "sockets of Docker, containerd, systemd, D-Bus; run-time secrets and keys"},
		{Path: "/tmp", Mode: 0o1777, Reason: "other programs' sockets, X11 and agent sockets, files in passing"},
		{Path: "/var/tmp", Mode: 0o1777, Reason: "as /tmp"},
		{Path: "/var/log", Keep: true, Reason: "the host's logs: names, addresses, secrets printed by mistake"},
		{Path: "/var/mail", Reason: "people's mail"},
		{Path: "/var/spool", Keep: true, Reason: "people's mail, print and cron jobs"},
		{Path: "/var/backups", Reason: "copies of /etc/shadow and package state"},
		{Path: "/var/lib/cofferdam", Reason: "records of other runs and the audit log"},
		{Path: "/var/lib/docker", Reason: "images, volumes and configuration of other containers"},
		{Path: "/var/lib/containerd", Reason: "images and state of other containers"},
		{Path: "/var/lib/containers", Reason: "images and state of other containers"},
		{Path: "/var/lib/kubelet", Reason: "pod secrets and service account tokens"},
		{Path: "/var/lib/rancher", Reason: "cluster credentials"},
		{Path: "/var/lib/etcd", Reason: "cluster state, secrets included"},
		{Path: "/var/lib/postgresql", Reason: "databases"},
		{Path: "/var/lib/mysql", Reason: "databases"},
		{Path: "/var/lib/redis", Reason: "databases"},
		{Path: "/var/lib/systemd", Reason: "random seed, credential host key, core dumps"},
		{Path: "/var/lib/NetworkManager", Reason: "secret key, leases"},
		{Path: "/var/lib/cloud", Reason: "cloud user data, often with secrets"},
		{Path: "/var/lib/private", Reason: "state of services with dynamic users"},
		{Path: "/var/lib/sss", Reason: "cached directory credentials"},
		{Path: "/etc/shadow*", Kind: Absent, Reason: "password hashes"},
		{Path: "/etc/gshadow*", Kind: Absent, Reason: "password hashes"},
		{Path: "/etc/ssh/ssh_host_*", Kind: Absent, Reason: "the host's identity"},
		{Path: "/etc/ssl/private", Mode: 0o700, Reason: "TLS private keys"},
		{Path: "/etc/pki/tls/private", Mode: 0o700, Reason: "TLS private keys"},
		{Path: "/etc/letsencrypt", Reason: "TLS private keys and account keys"},
		{Path: "/etc/krb5.keytab", Kind: Absent, Reason: "the host's Kerberos identity"},
		{Path: "/etc/sudoers.d", Reason: "who may become root, and how"},
		{Path: "/etc/sudoers", Kind: Absent, Reason: "who may become root, and how"},
		{Path: "/etc/security/opasswd", Kind: Absent, Reason: "old password hashes"},
		{Path: "/etc/wireguard", Reason: "tunnel keys"},
		{Path: "/etc/openvpn", Reason: "tunnel keys"},
		{Path: "/etc/ipsec.secrets", Kind: Absent, Reason: "tunnel keys"},
		{Path: "/etc/ppp", Reason: "line passwords"},
		{Path: "/etc/NetworkManager/system-connections", Reason: "wireless and tunnel passwords"},
		{Path: "/etc/wpa_supplicant", Reason: "wireless passwords"},
		{Path: "/etc/kubernetes", Reason: "cluster credentials"},
		{Path: "/etc/rancher", Reason: "cluster credentials"},
		{Path: "/etc/docker", Reason: "registry and daemon configuration"},
		{Path: "/etc/containers/auth.json", Kind: Absent, Reason: "registry credentials"},
		{Path: "/etc/cofferdam", Reason: "the administrator's policies and keys"},
		{Path: "/etc/credstore*", Kind: EmptyDir, Reason: "systemd credentials"},
		{Path: "/etc/apt/auth.conf", Kind: Absent, Reason: "package mirror passwords"},
		{Path: "/etc/apt/auth.conf.d", Reason: "package mirror passwords"},
		{Path: "/etc/npmrc", Kind: Absent, Reason: "registry tokens"},
		{Path: "/usr/etc/npmrc", Kind: Absent, Reason: "registry tokens"},
		{Path: "/usr/local/etc/npmrc", Kind: Absent, Reason: "registry tokens"},
		{Path: "/etc/pip.conf", Kind: Absent, Reason: "index passwords"},
		{Path: "/etc/netrc", Kind: Absent, Reason: "passwords"},
		{Path: "/etc/gitconfig", Kind: Absent, Reason: "credential helpers and tokens in URLs"},
		{Path: "/etc/google", Reason: "cloud credentials"},
		{Path: "/etc/boto.cfg", Kind: Absent, Reason: "cloud credentials"},
		{Path: "/etc/azure", Reason: "cloud credentials"},
		{Path: "/etc/machine-id", Kind: Absent, Reason: "identity of the host; the sandbox has its own"},
	}
}

// HideOn returns Hide for one machine: with the places to which its paths lead where they are symbolic links there, and with people's homes wherever
// the list of users says they are. The caller sees the machine's own root.
func HideOn(passwd string) []Hidden {
	all := Hide()
	for _, home := range homes(passwd) {
		all = append(all, Hidden{Path: home, Mode: 0o700, Reason: "a user's home"})
	}
	for _, h := range slices.Clone(all) {
		matches, _ := filepath.Glob(h.Path) // the patterns are ours, a test parses them
		for _, path := range matches {
			real, err := filepath.EvalSymlinks(path)
			if err == nil && real != path && !isSystem(real) {
				all = append(all, Hidden{Path: real, Kind: h.Kind, Mode: h.Mode, Keep: h.Keep, Reason: h.Reason})
			}
		}
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(h Hidden) bool {
		again := seen[h.Path]
		seen[h.Path] = true
		return again
	})
}

// homes reads people's home directories, root's included, from a file of passwd(5)'s form. Those of services (user ids 1 to 999) are their state, which Hide lists where it matters.
func homes(passwd string) []string {
	var found []string
	for line := range strings.Lines(passwd) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 7 {
			continue
		}
		uid, err := strconv.Atoi(fields[2])
		home := filepath.Clean(fields[5])
		if err != nil || uid > 0 && uid < 1000 || !filepath.IsAbs(home) || isSystem(home) || strings.ContainsAny(home, `*?[\`) {
			continue
		}
		found = append(found, home)
	}
	return found
}

// isSystem says whether a directory is so much part of the system that a sandbox without it would be of no use.
func isSystem(path string) bool {
	return path == "/" || slices.Contains(System(), strings.TrimPrefix(path, "/")) || slices.Contains([]string{"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/share", "/usr/local", "/var/lib", "/var/cache"}, path)
}

// HiddenProc are the files and directories of /proc that are emptied, and ReadOnlyProc those that cannot be written: the defaults of the OCI runtime specification's reference configuration.
func HiddenProc() []string {
	return []string{"acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi", "kallsyms", "kpagecount", "kpageflags", "kpagecgroup", "vmallocinfo", "slabinfo", "config.gz"}
}

// ReadOnlyProc is described at HiddenProc.
func ReadOnlyProc() []string {
	return []string{"bus", "fs", "irq", "sys", "sysrq-trigger", "driver", "tty", "mtrr"}
}
