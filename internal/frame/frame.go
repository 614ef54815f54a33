// Package frame (WORDS) is the wire between a runner inside a sandbox and its owner outside: one ordered byte stream, small frames, credit per stream.
//
// It works over any reliable byte stream (TCP through the gateway's control address, virtio-serial, vsock), and links nothing but the standard library.
package frame

// Boot is the one JSON line that process 1 reads from its boot file before anything else.
type Boot struct {
	Control string `json:"control"` // address to dial, such as "198.18.0.1:1"
	Token   string `json:"token"`   // one-time runner token, hex
}

// Start tells the runner what to run. It is the only place where environment and arguments cross.
type Start struct {
	// Hold, in which case everything else is zero, has the runner run nothing and keep the sandbox until the connection ends; commands come by Spawn.
	Hold bool `json:"hold,omitempty"`
	// Self has the program be the runner's own file, whatever lies now at the path that it had: programs inside can have put another there. Args[0] is only
	// its name then.
	Self     bool     `json:"self,omitempty"`
	Args     []string `json:"args"`
	Env      []string `json:"env"`
	Dir      string   `json:"dir"`
	TTY      bool     `json:"tty"`
	Rows     uint16   `json:"rows,omitempty"`
	Cols     uint16   `json:"cols,omitempty"`
	NoStdin  bool     `json:"no_stdin,omitempty"`   // stdin is /dev/null
	OpenFile uint64   `json:"open_files,omitempty"` // RLIMIT_NOFILE soft limit, 0 = leave
}

// Exit says how the command ended. Exactly one of Code and Signal is meaningful: Signal when it is not zero.
type Exit struct {
	Code     int    `json:"code"`
	Signal   int    `json:"signal,omitempty"`
	Error    string `json:"error,omitempty"`     // the command could not be started: why
	NotFound bool   `json:"not_found,omitempty"` // with Error: no such program (shell status 127, else 126)
}

// Query asks which process inside owns a socket, so that a denial can name it.
type Query struct {
	ID      uint32 `json:"id"`
	Network string `json:"network"` // "tcp", "udp", "icmp" or "raw"
	Source  string `json:"source"`  // ip:port as the gateway saw the peer; the port is the echo's identifier for icmp, the IP protocol for raw
	Dest    string `json:"dest"`    // original ip:port; may be empty but for tcp
}

// Owner answers a Query. It comes from inside: a help for people, no evidence.
type Owner struct {
	ID   uint32 `json:"id"`
	PID  int    `json:"pid,omitempty"` // 0: not found
	Name string `json:"name,omitempty"`
}

// ReservedProcesses is how many processes and threads more than its command the runner may have: whoever bounds them adds these, so that a command at its
// bound does not take from process 1 the thread by which that would be told.
const ReservedProcesses = 32
