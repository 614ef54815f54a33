// Command runsc is gVisor's runtime, built from the version that go.mod pins. It is a program and a module of its own: its dependencies stay out of Cofferdam's programs.
package main

import "gvisor.dev/gvisor/runsc/cli/maincli"

func main() { maincli.Main() }
