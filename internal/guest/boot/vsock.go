package boot

// Some monitors have no virtio-serial port. Their machines' port is a connection over vsock instead, which the guest makes: it is the same stream.
const (
	// VsockPort is the number of the port on the host, in vsock(7)'s sense.
	VsockPort = 1024
	// VsockGuest is the machine's own address there. It is the least that a guest may have; nobody but the machine's own monitor ever sees it.
	VsockGuest = 3
	// VsockArgument on the kernel's command line tells the guest that its port is over vsock. The kernel ignores arguments with a dot whose module it does not know.
	VsockArgument = "cofferdam.port=vsock"
)
