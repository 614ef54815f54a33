package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// kernelProbes ask the kernel for what would lead out, each with the error that the mechanism gives: the filter's EPERM or ENOSYS, or the
// missing right. That the filter, the rights and no_new_privs are in force is a probe by itself.
func kernelProbes() []probe {
	probes := []probe{{
		id: "E29", what: "rights after the fact: filter, no_new_privs, ten capabilities at most", refused: "all in force", run: `
awk '/^(Seccomp|NoNewPrivs|Cap(Inh|Prm|Eff|Bnd|Amb)):/ { print }' /proc/self/status
grep -q '^Seccomp:.2$' /proc/self/status && grep -q '^NoNewPrivs:.1$' /proc/self/status && [ $(grep -c '^Cap.*00000000800404fb$' /proc/self/status) = 3 ] && echo all in force && exit 1
exit 0`,
	}}
	sys := func(id, what, name, refused string) {
		probes = append(probes, probe{id: id, what: what, run: "$A sys " + name, refused: refused})
	}
	const filtered, absentCall = "operation not permitted", "function not implemented"
	for i, name := range strings.Fields("mount-tmpfs mount-proc mount-bind mount-over remount-proc-sys remount-runner remount-root mount-setattr umount-kcore umount-sys umount-root pivot-root open-tree fsopen fspick move-mount") {
		sys(fmt.Sprintf("E12%c", 'a'+i), "mounts: "+name, name, filtered)
	}
	for i, name := range strings.Fields("unshare-user unshare-mount unshare-net unshare-pid unshare-time unshare-cgroup clone-user clone-net clone-mount setns-own setns-pidfd") {
		sys(fmt.Sprintf("E21%c", 'a'+i), "namespaces: "+name, name, filtered)
	}
	for i, name := range strings.Fields("setns-user setns-mnt setns-net setns-pid") {
		sys(fmt.Sprintf("E21s%d", i), "namespaces of process 1: "+name, name, filtered+"|permission denied")
	}
	sys("E21t", "namespaces: clone3-user", "clone3-user", absentCall)
	for i, name := range strings.Fields("ptrace-1 ptrace-child process-vm-readv process-vm-writev pidfd-getfd-1 pidfd-getfd-child kcmp prctl-mm") {
		sys(fmt.Sprintf("E22%c", 'a'+i), "other processes: "+name, name, filtered)
	}
	sys("E28a", "signals to process 1", "kill-1", "process 1 is alive")
	probes[len(probes)-1].harmful = true // it would end the control column itself
	for i, name := range strings.Fields("keyctl add-key request-key bpf perf io-uring io-uring-register userfaultfd fanotify open-by-handle init-module finit-module delete-module kexec syslog personality-nornd lookup-dcookie") {
		sys(fmt.Sprintf("E23%c", 'a'+i), "the kernel: "+name, name, filtered)
	}
	sys("E23s", "the kernel: memfd-secret", "memfd-secret", absentCall)
	sys("E23t", "the kernel: modify-ldt", "modify-ldt", absentCall)
	sys("E23u", "the kernel: name-to-handle", "name-to-handle", "not supported")
	sys("E23v", "the kernel: tcp-ulp", "tcp-ulp", "protocol not available")
	sys("E23w", "rubbish in the upper half of an argument", "high-argument-bits", "address family not supported")
	for i, name := range strings.Fields("mknod-disk mknod-sda mknod-loop mknod-mem mknod-kmsg mknod-null mknod-kvm mknod-whiteout mknodat-disk") {
		sys(fmt.Sprintf("E19%c", 'a'+i), "device nodes: "+name, name, filtered)
	}
	for i, name := range strings.Fields("reboot swapon settimeofday clock-settime sethostname iopl acct quotactl vhangup") {
		sys(fmt.Sprintf("E20%c", 'a'+i), "the whole machine: "+name, name, filtered)
	}
	for i, name := range strings.Fields("tiocsti tioclinux tiocsetd tiocsti-high") {
		sys(fmt.Sprintf("E27%c", 'a'+i), "terminals: "+name, name, filtered)
	}
	for i, name := range strings.Fields("gain-capabilities ambient seccomp-off drop-no-new-privs setuid-outside") {
		sys(fmt.Sprintf("E18%c", 'a'+i), "rights: "+name, name, filtered+"|invalid argument")
	}
	sys("E18f", "rights: oom-score", "oom-score", "permission denied")
	killed := func(id, what, name, signal string) { // a kernel without such a table ends the program in another way
		run := "out=$($A sys " + name + ` 2>&1); rc=$?; [ $rc = 159 ] && echo killed by SIGSYS && exit 1; case $out in *SIGSEGV*) echo killed by SIGSEGV; exit 1;; esac; echo "$out"; exit $rc`
		probes = append(probes, probe{id: id, what: what, run: run, refused: signal})
	}
	killed("E24a", "a call through the table of 32-bit programs", "int80", "SIGSYS|SIGSEGV")
	killed("E24b", "a call through the x32 table", "x32", "SIGSYS")
	probes = append(probes,
		probe{id: "E24c", what: "a thousand random system calls", run: fmt.Sprintf("$A syscalls %d 1000", rand.IntN(1<<30)), refused: "function not implemented"},
		probe{id: "E26r", what: "two thousand random sockets", run: fmt.Sprintf("$A sockets %d 2000", rand.IntN(1<<30)), refused: "none of 2000"},
	)
	return append(append(probes, socketProbes()...), toolProbes()...)
}

// socketProbes open sockets of families that have no use behind a gateway.
func socketProbes() (probes []probe) {
	for i, args := range []string{
		"packet 3 768", "packet 2 768", "vsock 1", "alg 5", "xdp 3", "tipc 4", "rds 5", "bluetooth 3", "key 3 2", "can 3", "kcm 5", "smc 1", "appletalk 2", "x25 5", "ax25 5", "nfc 5", "qipcrtr 2", "phonet 2", "mctp 2", "llc 2",
		"netlink 3 12", "netlink 3 9", "netlink 3 15", "netlink 3 16", "netlink 3 4", "inet 3 1", "inet 3 255", "inet6 3 58", "inet 3 6", "inet 1 262", "inet 1 132", "inet 5 132", "inet 6 33", "inet 2 136", "inet 2 115", "inet 10 768", "inet6 5 132",
	} {
		probes = append(probes, probe{
			id: fmt.Sprintf("E26-%02d", i), what: "socket of family, type, protocol " + args, run: "$A socket " + args, refused: "address family not supported|protocol not supported|socket type not supported|operation not permitted",
			control: "$A socket inet 1 0 && $A socket netlink 3 0 && $A socket unix 1 0",
		})
	}
	return probes
}

// toolProbes try the same with the tools that people have.
func toolProbes() (probes []probe) {
	for i, line := range []string{
		"mount -t tmpfs x /mnt", "mount -o remount,rw /proc/sys", "mount -o remount,rw /sys", "umount /proc/kcore", "umount -l /", "unshare -U true", "unshare -r true", "unshare -m true", "unshare -n true", "nsenter -t 1 -a true", "nsenter -t 1 -m true",
		"nsenter --net=/proc/1/ns/net true", "mknod /tmp/disk b 254 0", "losetup -f", "dmesg", "hostname pwned", "date -s 2001-01-01", "modprobe dummy", "insmod /dev/null", "capsh --caps=all+eip --", "strace -f true",
		"bwrap --ro-bind / / --unshare-user true", "systemd-run true", "docker ps", "reboot -f", "gdb -p 1 -batch", "chroot /proc/1/root true", "busctl list", "loginctl", "machinectl",
	} {
		tool, _, _ := strings.Cut(line, " ")
		probes = append(probes, probe{
			id: fmt.Sprintf("E21x%02d", i), what: "tool: " + line, needs: tool, run: "timeout -s INT $SOON " + line + "; rc=$?; [ $rc = 125 ] || [ $rc = 126 ] && rc=1; exit $rc", harmful: strings.Contains("reboot date hostname swapoff losetup modprobe insmod docker systemd-run", tool),
			refused: notMine + `|not permitted|must be superuser|cannot open|denied|Cannot connect|cannot set|Failed to|not supported|No such file|No machines|failed|not found|only root|Unable|not mounted|no journal|Couldn|Can't|must be root|cannot find|No permissions`,
		})
	}
	return probes
}

// linkTraps lays links and canaries around the project.
func linkTraps(h *house) {
	h.write("../canary.txt", "canary-4711-home")
	h.write("../.ssh/id_rsa", "canary-4711-key")
	for name, target := range map[string]string{"home": "../canary.txt", "absolute": filepath.Join(h.home, "canary.txt"), "root": "/root/.ssh", "proc": "/proc/1/root" + filepath.Join(h.home, "canary.txt")} {
		if err := os.Symlink(target, filepath.Join(h.project, "trap-"+name)); err != nil {
			h.t.Fatal(err)
		}
	}
}

// viewProbes look for the machine, its secrets and its processes in files.
func viewProbes() []probe {
	script := func(id, what, run, refused string) probe {
		return probe{id: id, what: what, run: run, refused: refused}
	}
	// unreadable succeeds if one of the files can be read and is not empty.
	unreadable := func(id, what string, files string) probe {
		return script(id, what, `for f in `+files+`; do if [ -n "$(head -c 100 $f 2>/dev/null | tr -d '\0')" ]; then echo "read $f: $(head -c 60 $f | tr -d '\0')"; exit 0; fi; done; echo nothing to read; exit 1`, "nothing to read")
	}
	unwritable := func(id, what string, files string) probe {
		return script(id, what, `for f in `+files+`; do if (printf x >$f) 2>/dev/null; then echo "wrote $f"; exit 0; fi; done; echo nothing to write; exit 1`, "nothing to write")
	}
	canary := func(id, what, find string) probe {
		return script(id, what, `if `+find+` 2>/dev/null | tr '\0' '\n' | grep -a -m1 'canary-471[1]'; then exit 0; fi; echo no canary; exit 1`, "no canary")
	}
	probes := []probe{
		canary("D15a", "the caller's environment in any process", "cat /proc/[0-9]*/environ"), canary("D15b", "the caller's environment in one's own", "env"), canary("D15c", "arguments and names of processes", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/comm"),
		canary("E1a", "links out of the project", "cat ../trap-*"), canary("E1b", "dots out of the project", "cat ../../canary.txt ../../.ssh/id_rsa"), canary("E1c", "the root of process 1", "cat /proc/1/root$(dirname $(dirname $PWD))/canary.txt"),
		canary("E1d", "open files of process 1", "cat /proc/1/fd/* /proc/1/cwd/*"), canary("E1e", "everything below /home, /root, /tmp, /run and /var", "timeout 20 grep -raso canary-471[1] /home /root /run /var /opt --exclude-dir=cases"),
		unreadable("E30a", "process 1: memory, environment, files", "/proc/1/environ /proc/1/mem /proc/1/maps /proc/1/auxv /proc/1/stack /proc/1/syscall"),
		unreadable("E30b", "the kernel's memory and addresses", "/proc/kcore /proc/kallsyms /proc/kpagecount /proc/kpageflags /proc/vmallocinfo /proc/slabinfo /dev/mem /dev/kmsg /proc/kmsg /dev/port"),
		unreadable("E30c", "keys and timers of others", "/proc/keys /proc/timer_list /proc/sched_debug /proc/key-users-none"),
		unreadable("E30d", "passwords and host keys", "/etc/shadow /etc/gshadow /etc/shadow- /etc/ssh/ssh_host_*_key /etc/sudoers /etc/ssl/private/* /var/backups/shadow* /etc/krb5.keytab"),
		unreadable("E30e", "raw disks and other devices", "/dev/vda /dev/sda /dev/nvme0n1 /dev/loop0 /dev/loop-control /dev/fuse /dev/kvm /dev/net/tun /dev/vsock /dev/mapper/control /dev/uinput /dev/input/event0 /dev/tty0 /dev/console"),
		unreadable("E17", "sockets of engines and of the machine", "/run/docker.sock /var/run/docker.sock /run/containerd/containerd.sock /run/podman/podman.sock /run/dbus/system_bus_socket /run/systemd/private /run/crio/crio.sock /run/snapd.socket"),
		unreadable("F8", "tokens of an orchestrator", "/var/run/secrets/kubernetes.io/serviceaccount/token /var/lib/kubelet/* /etc/kubernetes/*"),
		unwritable("E32a", "what the kernel runs as root: core_pattern and the like", "/proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/poweroff_cmd /proc/sys/kernel/hotplug /sys/kernel/uevent_helper /proc/sys/fs/binfmt_misc/register /sys/fs/cgroup/release_agent"),
		unwritable("E32b", "system requests and settings", "/proc/sysrq-trigger /proc/sys/kernel/sysrq /proc/sys/vm/overcommit_memory /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/hostname /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/irq/0/smp_affinity /proc/bus/pci/00/00.0"),
		unwritable("E32c", "the runner and process 1", "/proc/1/exe /run/cofferdam/runner /proc/1/mem /proc/1/oom_score_adj /proc/1/attr/current /proc/1/clear_refs /proc/1/uid_map /proc/1/setgroups /proc/self/uid_map"),
		script("E32d", "the runner, by another name", "ln /run/cofferdam/runner /tmp/r && exit 0; mv /run/cofferdam/runner /tmp/r && exit 0; rm -f /run/cofferdam/runner && exit 0; chmod 777 /run/cofferdam/runner && exit 0; exit 1", "busy|Read-only|cross-device|not permitted|Invalid"),
		script("E32e", "control groups of the machine", `find /sys /dev /run /mnt /media /opt /srv /tmp /root /home -name release_agent 2>/dev/null | grep . && exit 0; ls -d /sys/fs/cgroup/* 2>/dev/null | grep . && exit 0; grep -E " cgroup2? " /proc/self/mounts && exit 0; echo no control groups in sight; exit 1`, "no control groups"),
		script("E33", "processes of the machine", `n=$(ls -d /proc/[0-9]* | wc -l); [ "$(cat /proc/1/comm)" = runner ] && [ $n -lt 60 ] && echo "$n processes, the first is the runner" && exit 1; exit 0`, "the first is the runner"),
		script("E28b", "signals to everybody", `ps -e -o pid= >/dev/null; kill -0 -1; for p in $(seq 2 300); do [ -d /proc/$p ] || ! kill -0 $p 2>/dev/null || { sleep 0.3; [ -d /proc/$p ]; } || ! kill -0 $p 2>/dev/null || { echo "unseen process $p"; exit 0; }; done; echo only processes in sight; exit 1`, "only processes in sight"),
		script("E36a", "the machine's name and identity", `[ "$(hostname)" = cofferdam ] && [ "$(cat /etc/hostname)" = cofferdam ] && echo "name $(hostname), id $(cat /etc/machine-id)" && exit 1; exit 0`, "name cofferdam"),
		script("E36b", "/sys", `ls /sys | grep . && exit 0; echo /sys is empty; exit 1`, "empty"),
		script("E36c", "network interfaces other than loopback", `grep -v -e '|' -e ' lo:' /proc/net/dev && exit 0; echo only lo; exit 1`, "only lo"),
		script("E27e", "the caller's terminal", `(echo x >/dev/tty) 2>&1; for t in /proc/self/fd/*; do readlink $t; done | grep -E '/dev/(pts|tty)' && exit 0; exit 1`, "No such device|cannot create"),
		script("E18g", "set-id programs", `f=$(mktemp) && trap 'rm -f -- "$f"' EXIT && cp /usr/bin/id "$f"; chown 33 "$f"; chmod 4755 "$f"; [ "$("$f" -u)" = 33 ] && exit 0; echo without effect; exit 1`, "without effect"),
		script("E18h", "another user inside reads what only root inside may", `f=$(mktemp) && trap 'rm -f -- "$f"' EXIT && echo x >"$f"; setpriv --reuid 33 --regid 33 --clear-groups cat "$f" && exit 0; exit 1`, "ermission denied|not permitted").as("root"),
		script("E35", "the classic way out by chroot", wayOutByChroot, "still in"),
		script("E13", "a whole path of links and dots", `d=$(mktemp -d) && trap 'rm -rf -- "$d"' EXIT && cd "$d" && ln -s / a && ln -s a/../../.. b && cat "b$(dirname $A)/../../canary.txt" && exit 0; cat /proc/self/root/../../../..$(dirname $A)/../../canary.txt && exit 0; exit 1`, "No such file"),
	}
	for i, needle := range []string{"/proc/self/fd", "/proc/1/fd"} {
		probes = append(probes, script(fmt.Sprintf("E37%c", 'a'+i), "files left open in "+needle, `for f in `+needle+`/*; do l=$(readlink $f 2>/dev/null); case "$l" in ""|pipe:*|/dev/null|/proc/*|*cases*|socket:*) ;; *) echo "$f -> $l"; exit 0;; esac; done; echo none; exit 1`, "none"))
	}
	return probes
}

// wayOutByChroot ends with 0 if it lists another root directory than the one that its program has.
const wayOutByChroot = `d=$(mktemp -d) && trap 'rm -rf -- "$d"' EXIT; seen=$(perl -e 'opendir(D,"/"); chroot($ARGV[0]); chdir("/proc/self/fd") ; for(1..100){chdir("..")} chroot("."); exec("/bin/ls","/") ' "$d" 2>&1); own=$(/bin/ls /); [ -n "$seen" ] && [ "$seen" != "$own" ] && exit 0; ls -di /; echo still in the sandbox; exit 1`

// TestWayOutByChroot is the control of that attack: out of a bare chroot it is one.
func TestWayOutByChroot(t *testing.T) {
	testenv.Need(t, "root", "tool:unshare", "tool:perl")
	tree := testenv.FullTree(t, 0)
	const inside = `mount -t tmpfs none "$0/tmp" && exec chroot "$0" sh -c "$1"`
	out, err := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-c", inside, tree, wayOutByChroot).CombinedOutput()
	if err != nil {
		t.Errorf("it does not get out of a chroot: %v: %s", err, out)
	}
}
