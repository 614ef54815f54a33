package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/cofferdam/cofferdam/internal/isolation/container"
	"github.com/cofferdam/cofferdam/internal/isolation/kvm"
	"github.com/cofferdam/cofferdam/internal/rootfs"
)

// The parts of a bundle's configuration that are used (OCI runtime specification 1.2, config.md).
type (
	config struct {
		Version  string  `json:"ociVersion"`
		Process  process `json:"process"`
		Root     root    `json:"root"`
		Hostname string  `json:"hostname"`
		Mounts   []mount `json:"mounts"`
		Linux    linux   `json:"linux"`
	}
	process struct {
		Args         []string     `json:"args"`
		Env          []string     `json:"env"`
		Dir          string       `json:"cwd"`
		User         user         `json:"user"`
		NoNewRights  bool         `json:"noNewPrivileges"`
		Limits       []limit      `json:"rlimits,omitempty"`
		Capabilities capabilities `json:"capabilities"`
	}
	user struct {
		UID int `json:"uid"`
		GID int `json:"gid"`
	}
	limit struct {
		Type string `json:"type"`
		Hard uint64 `json:"hard"`
		Soft uint64 `json:"soft"`
	}
	capabilities struct {
		Bounding  []string `json:"bounding"`
		Effective []string `json:"effective"`
		Permitted []string `json:"permitted"`
		Inherited []string `json:"inheritable,omitempty"`
	}
	root struct {
		Path string `json:"path"`
	}
	mount struct {
		Target  string   `json:"destination"`
		Type    string   `json:"type"`
		Source  string   `json:"source"`
		Options []string `json:"options,omitempty"`
	}
	linux struct {
		Namespaces []namespace `json:"namespaces"`
	}
	namespace struct {
		Type string `json:"type"`
		Path string `json:"path,omitempty"`
	}
)

// configure describes the sandbox to runsc: what level container does by itself, said in the words of the specification.
func configure(g container.Ground) (config, error) {
	names, err := capabilityNames(g.Capabilities)
	if err != nil {
		return config{}, err
	}
	c := config{
		Version: "1.2.0", Root: root{g.View}, Hostname: g.Hostname,
		Process: process{
			Args: []string{rootfs.RunnerPath}, Dir: "/", Env: []string{"GOMAXPROCS=1"}, NoNewRights: true,
			Limits:       []limit{{Type: "RLIMIT_CORE"}},
			Capabilities: capabilities{Bounding: names, Effective: names, Permitted: names},
		},
		Mounts: []mount{
			{Target: "/proc", Type: "proc", Source: "proc"},
			{Target: "/sys", Type: "tmpfs", Source: "none", Options: []string{"ro", "nosuid", "nodev", "noexec", "size=4096"}}, // empty, as at level container
			// gVisor would put a file system in its own memory there; on scratch it counts as what it is.
			{Target: "/tmp", Type: "bind", Source: g.View + "/tmp", Options: []string{"rbind", "rw"}},
			// A mount in gVisor's terms too, so that nothing inside moves it away.
			{Target: rootfs.RunnerPath, Type: "bind", Source: g.View + rootfs.RunnerPath, Options: []string{"bind", "ro"}},
			// Not on scratch: programs wait for each other in shared memory, which gVisor can do only in its own. It counts as memory, and has a bound of its own.
			{Target: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777", "size=" + strconv.FormatInt(g.Disk, 10)}},
		},
		// Only the network's namespace matters to runsc: the process that it starts the sandbox from has entered it.
		Linux: linux{Namespaces: []namespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "network", Path: "/proc/self/ns/net"}}},
	}
	if g.PIDs > 0 {
		c.Process.Limits = append(c.Process.Limits, limit{Type: "RLIMIT_NPROC", Hard: uint64(g.PIDs), Soft: uint64(g.PIDs)})
	}
	if g.OpenFiles > 0 {
		c.Process.Limits = append(c.Process.Limits, limit{Type: "RLIMIT_NOFILE", Hard: uint64(g.OpenFiles), Soft: uint64(g.OpenFiles)})
	}
	if g.Tracing { // as at level container: the runner may look at processes of other users inside, what it starts may not, for the bounding set lacks it
		c.Process.Capabilities.Inherited = []string{"CAP_SYS_PTRACE"}
		tracing := append(slices.Clone(names), "CAP_SYS_PTRACE")
		c.Process.Capabilities.Effective, c.Process.Capabilities.Permitted = tracing, tracing
	}
	return c, nil
}

// writeBundle puts the configuration where runsc looks for it.
func writeBundle(g container.Ground) error {
	c, err := configure(g)
	if err != nil {
		return err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the configuration: %w", err)
	}
	return os.WriteFile(g.Work+"/config.json", data, 0o600)
}

// flags are how runsc is called. What is its default is said all the same where safety hangs on it.
func flags(g container.Ground) []string {
	access, direct := "exclusive", "true"
	if g.Shared {
		access = "shared" // the host's programs write too: nothing may be remembered
		// What keeps paths of the folder in place are mounts, and only a process in their own mount namespace is refused to move what is mounted on (is_local_mountpoint
		// in fs/namespace.c): that is runsc's gofer, which then does all that is done to files. gVisor's kernel itself, in another one, would tear the mounts off.
		direct = "false"
	}
	platform := []string{"--platform=" + Systrap}
	if g.Platform == KVM {
		platform = []string{"--platform=" + KVM, "--platform_device_path=" + kvm.Device}
	}
	return slices.Concat([]string{"runsc", "--root=" + g.Work + "/state", "--log=" + g.Log, "--log-format=json"}, platform, []string{
		"--ignore-cgroups=true", "--host-settings=ignore",
		"--network=sandbox", "--net-raw=false", "--allow-packet-socket-write=false", "--gofer-network-namespace=new",
		"--overlay2=none", "--file-access=" + access, "--file-access-mounts=" + access, "--directfs=" + direct, "--host-uds=none", "--host-fifo=none",
		"--allow-suid=false", "--oci-seccomp=false", "--allow-flag-override=false",
		"run", "--bundle=" + g.Work, "sandbox",
	})
}

// capabilityNames are the names of linux/capability.h, by number, as far as sandboxes have them.
func capabilityNames(numbers []uintptr) ([]string, error) {
	known := map[uintptr]string{
		0: "CAP_CHOWN", 1: "CAP_DAC_OVERRIDE", 3: "CAP_FOWNER", 4: "CAP_FSETID", 5: "CAP_KILL", 6: "CAP_SETGID", 7: "CAP_SETUID",
		10: "CAP_NET_BIND_SERVICE", 18: "CAP_SYS_CHROOT", 31: "CAP_SETFCAP",
	}
	names := make([]string, 0, len(numbers))
	for _, n := range numbers {
		name, ok := known[n]
		if !ok {
			return nil, fmt.Errorf("capability %s has no name here", strconv.Itoa(int(n)))
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}
