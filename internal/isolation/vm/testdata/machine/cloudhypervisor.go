package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// options splits "a=1,b=2", as Cloud Hypervisor does, and refuses names that it was not given.
func options(text string, known ...string) (map[string]string, error) {
	got := map[string]string{}
	for _, part := range strings.Split(text, ",") {
		name, value, ok := strings.Cut(part, "=")
		if !ok || !strings.Contains(" "+strings.Join(known, " ")+" ", " "+name+" ") {
			return nil, fmt.Errorf("unknown option %q", part)
		}
		got[name] = value
	}
	return got, nil
}

// cloudHypervisor takes the command line of Cloud Hypervisor 52 (cloud-hypervisor/src/main.rs, vmm/src/config.rs), as far as the tests may use it.
func cloudHypervisor(args []string) (m machine, err error) {
	given := map[string][]string{}
	for i := 0; i+1 < len(args); i += 2 {
		if name, ok := strings.CutPrefix(args[i], "--"); ok {
			given[name] = append(given[name], args[i+1])
			continue
		}
		return m, fmt.Errorf("unexpected argument '%s' found", args[i])
	}
	if len(args)%2 != 0 {
		return m, errors.New("a value is required")
	}
	if m, err = describe(given); err != nil {
		return m, err
	}
	api, err := options(strings.Join(given["api-socket"], ""), "fd")
	if err != nil {
		return m, err
	}
	fd, err := strconv.Atoi(api["fd"])
	if err != nil {
		return m, err
	}
	return m, serve(fd)
}

func describe(given map[string][]string) (m machine, err error) {
	known := map[string][]string{
		"api-socket": nil, "seccomp": nil, "kernel": nil, "initramfs": nil, "cmdline": nil, "serial": nil, "console": nil,
		"cpus": {"boot"}, "memory": {"size"}, "rng": {"src"}, "disk": {"path", "readonly", "image_type", "serial"}, "net": {"fd", "mac"}, "vsock": {"cid", "socket"},
	}
	all := map[string]map[string]string{}
	for name, values := range given {
		names, ok := known[name]
		if !ok || name != "disk" && len(values) != 1 {
			return m, fmt.Errorf("unexpected argument '--%s' found", name)
		}
		for _, value := range values {
			if names == nil {
				continue
			}
			if all[name], err = options(value, names...); err != nil {
				return m, fmt.Errorf("--%s: %w", name, err)
			}
			if d := all[name]; name == "disk" {
				if d["readonly"] != "on" || d["image_type"] != "raw" || d["serial"] == "" {
					return m, fmt.Errorf("disk %q", value)
				}
				m.files = append(m.files, d["path"])
			}
		}
	}
	if len(given["kernel"]) != 1 || len(given["initramfs"]) != 1 || len(given["cmdline"]) != 1 || strings.Join(given["seccomp"], "") != "true" {
		return m, fmt.Errorf("arguments %q", given)
	}
	m.files = append(m.files, root(given["kernel"][0]), root(given["initramfs"][0]))
	m.commandLine, m.vsock = given["cmdline"][0], root(all["vsock"]["socket"])
	cid, err := strconv.Atoi(all["vsock"]["cid"])
	if err != nil || cid < 3 {
		return m, fmt.Errorf("cid %d", cid)
	}
	if m.tapDescriptor, err = strconv.Atoi(strings.Trim(all["net"]["fd"], "[]")); err != nil || m.tapDescriptor <= 2 { // VnetReservedFd
		return m, fmt.Errorf("--net: %q", given["net"])
	}
	tell("arguments", all["cpus"]["boot"], all["memory"]["size"], len(given["disk"]), all["net"]["mac"])
	return m, nil
}

// serve answers the API on a listening socket that was handed over.
func serve(fd int) error {
	l, err := net.FileListener(os.NewFile(uintptr(fd), "api"))
	if err != nil {
		return err
	}
	version := os.Getenv("FAKE_API_VERSION")
	if version == "" {
		version = "52.0.0"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/vmm.ping", func(w http.ResponseWriter, _ *http.Request) {
		tell("vmm.ping")
		fmt.Fprintf(w, `{"build_version":"v52.0","version":%q,"pid":1,"features":["kvm"]}`, version)
	})
	paused := false
	change := func(name string, from bool) {
		mux.HandleFunc("PUT /api/v1/"+name, func(w http.ResponseWriter, _ *http.Request) {
			tell(name)
			if paused != from {
				w.WriteHeader(http.StatusInternalServerError)
				fmt.Fprint(w, `["Error from API","The VM is in another state"]`)
				return
			}
			paused = !from
			w.WriteHeader(http.StatusNoContent)
		})
	}
	change("vm.pause", false)
	change("vm.resume", true)
	go func() { _ = http.Serve(l, mux) }() // until the process ends
	return nil
}
