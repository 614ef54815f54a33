// Command attack is what the attack suite runs inside a sandbox, and, as "attack world", the internet around it.
//
// An attempt ends with status 0 if it got through, 1 if it was refused, 3 if it could not be made; the last line says what happened.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// errBroken marks an attempt that could not be made, so that it says nothing about the wall.
var errBroken = errors.New("the attempt itself is broken")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errBroken, fmt.Sprintf(format, args...))
}

// attempts are the subcommands. Each returns what it got, or the error that refused it.
func attempts() map[string]func(args []string) (string, error) {
	return map[string]func([]string) (string, error){
		"sys": system, "syscalls": randomCalls, "socket": openSocket, "sockets": randomSockets,
		"tcp": dialTCP, "udp": sendUDP, "ping": ping, "fastopen": fastOpen, "dns": askDNS, "dnsraw": rawDNS, "dnsfuzz": fuzzDNS,
		"http": rawHTTP, "tls": sayHello, "connections": hogConnections, "denials": floodDenials, "slow": slowly, "relay": relay, "control": control,
		"lent1": lentRaw, "lent2": lentH2, "flood2": floodH2, "routes": lentRoutes, "body": lentBody,
		"overwrite": overwriteProgram, "leaked": leakedFiles, "remount": remount, "spoil": spoilRoot, "hostile": hostileRoot, "swap": swapPath,
		"hijack": hijack, "planted": planted, "unix": dialUnix, "local": localSocket, "pair": localPair, "listen": localListen, "inherited": localOpen, "fifo": writeFIFO, "fork": forkBomb, "memory": hogMemory, "inodes": hogInodes, "files": hogFiles,
	}
}

func main() {
	if len(os.Args) < 2 {
		fmt.Println("usage: attack ATTEMPT ARGS…")
		os.Exit(3)
	}
	if os.Args[1] == "world" {
		if err := world(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "world:", err)
			os.Exit(3)
		}
		return
	}
	attempt := attempts()[os.Args[1]]
	if attempt == nil {
		fmt.Println("no such attempt:", os.Args[1])
		os.Exit(3)
	}
	began := time.Now()
	got, err := attempt(os.Args[2:])
	took := time.Since(began).Round(time.Millisecond)
	switch {
	case errors.Is(err, errBroken):
		fmt.Println(err)
		os.Exit(3)
	case err != nil:
		fmt.Printf("refused after %v: %v\n", took, err)
		os.Exit(1)
	}
	fmt.Printf("got through after %v: %s\n", took, got)
}

// arg returns the i-th argument or a default.
func arg(args []string, i int, otherwise string) string {
	if i < len(args) {
		return args[i]
	}
	return otherwise
}

// number returns the i-th argument as a number.
func number(args []string, i, otherwise int) int {
	n, err := strconv.Atoi(arg(args, i, strconv.Itoa(otherwise)))
	if err != nil {
		return otherwise
	}
	return n
}
