package container

import "os"

// Kernel is a kernel of the sandbox's own: a program that stands between the sandbox and the host's kernel, which process 1 becomes.
type Kernel struct {
	Program string `json:"program"` // its path on the host
	// Machine says that the program imitates a whole machine, in which a kernel and the runner start: it sees nothing of the host's but what is named there.
	// Nil is for a kernel that is an ordinary program itself. It gets the sandbox's view, by the function that Setup was given, and the runner is process 1 behind it.
	Machine *Machine `json:"machine,omitempty"`
	// Devices are device files of the host, by their paths below /dev, that a kernel which is an ordinary program opens besides /dev/null. The sandbox does not see them.
	Devices []string `json:"devices,omitempty"`
	// View finds, for a kernel that is an ordinary program, the mount namespace by which it reaches the sandbox's view, and where in it that lies; nil where that is process 1's.
	View func(pid int) (namespace *os.File, at string, err error) `json:"-"`
	// Settled are directories of the view that such a kernel knows once it is up, and would not notice a new entry of.
	Settled []string `json:"-"`
}

// Machine is what a program that imitates a machine is started with.
type Machine struct {
	Path string   `json:"path"` // of the program, for itself
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Show are the files and directories that the program sees, all of them read-only.
	Show []Shown `json:"show"`
	// Devices are device files of the host that it may open besides /dev/null and /dev/urandom, such as /dev/kvm.
	Devices []string `json:"devices,omitempty"`
	// Proc says that the program finds its open files in /proc, where it sees itself and nobody else.
	Proc bool `json:"proc,omitempty"`
	// Sockets is a directory in which the program makes Unix sockets, a little memory that is its own; with none it makes no sockets at all. Port is one that is there
	// already and listens, whose descriptor Start returns.
	Sockets string `json:"sockets,omitempty"`
	Port    string `json:"port,omitempty"`
	// Room says that the program opens the network's device itself, by its name: it stays in the room's network namespace, where it can make Unix sockets only, and no
	// open one is handed on. The device then goes with the room.
	Room bool `json:"room,omitempty"`
	// Changes and ChangedFiles are the size, in bytes and in files, of the scratch memory in which the caller gathers the workspace's changes; 0 for none.
	Changes      int64 `json:"changes,omitempty"`
	ChangedFiles int64 `json:"changed_files,omitempty"`
	// Writes is the size in bytes of the largest file among Files that is open for writing, beyond which the program cannot write; with 0 there is none, or a small one.
	Writes int64 `json:"writes,omitempty"`
	// Tasks bounds the program's threads.
	Tasks int64 `json:"tasks"`
	// Output is where the program writes what it says. The caller closes it, as all files, when Start has returned.
	Output *os.File `json:"-"`
	// Files are handed on, with the numbers from FirstFile on in their order. The machine's end of the network is the one after the last.
	Files []*os.File `json:"-"`
	// Count is how many files there are. Start sets it.
	Count int `json:"count"`
}

// Shown is a file or directory of the host by another path.
type Shown struct {
	Source string `json:"source"`
	Target string `json:"target"`
}

// The descriptors of a machine: those of set-up and of its output, then those that it works with.
const (
	fdOutput  = fdParent + 1
	FirstFile = fdParent + 2
)

// machine returns the machine that a kernel imitates, if it does.
func (k *Kernel) machine() *Machine {
	if k == nil {
		return nil
	}
	return k.Machine
}

// devices are the device files that the program opens.
func (k *Kernel) devices() []string {
	switch {
	case k == nil:
		return nil
	case k.Machine != nil:
		return k.Machine.Devices
	}
	return k.Devices
}

// files are what the child inherits besides its socket.
func (k *Kernel) files() []*os.File {
	m := k.machine()
	if m == nil {
		return nil
	}
	m.Count = len(m.Files)
	return append(append([]*os.File{m.Output}, m.Files...), m.Output) // the last keeps the number for the network, which set-up makes
}
