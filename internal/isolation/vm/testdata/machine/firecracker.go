package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
)

// configuration is FullVmConfiguration of Firecracker 1.16 (src/firecracker/swagger/firecracker.yaml), as far as it has what the tests may use: every other member is refused.
type configuration struct {
	Boot *struct {
		Kernel string `json:"kernel_image_path"`
		Initrd string `json:"initrd_path"`
		Args   string `json:"boot_args"`
	} `json:"boot-source"`
	Machine *struct {
		CPUs   int    `json:"vcpu_count"`
		Memory int64  `json:"mem_size_mib"`
		SMT    *bool  `json:"smt"`
		Huge   string `json:"huge_pages"`
	} `json:"machine-config"`
	Drives []struct {
		ID       string `json:"drive_id"`
		Path     string `json:"path_on_host"`
		Root     *bool  `json:"is_root_device"`
		ReadOnly bool   `json:"is_read_only"`
		Engine   string `json:"io_engine"`
	} `json:"drives"`
	Network []struct {
		ID  string `json:"iface_id"`
		Tap string `json:"host_dev_name"`
		MAC string `json:"guest_mac"`
	} `json:"network-interfaces"`
	Vsock *struct {
		CID  uint32 `json:"guest_cid"`
		Path string `json:"uds_path"`
	} `json:"vsock"`
}

// identifier is the form of ids in Firecracker's API.
var identifier = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

func firecracker(args []string) (m machine, err error) {
	given := map[string]string{}
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "--no-api":
			given[args[i]] = "yes"
		case "--id", "--config-file", "--level":
			if i++; i == len(args) {
				return m, errors.New("an argument without its value")
			}
			given[args[i-1]] = args[i]
		default:
			return m, fmt.Errorf("Found argument '%s' which wasn't expected", args[i])
		}
	}
	if given["--no-api"] == "" || given["--config-file"] == "" || given["--id"] == "" {
		return m, fmt.Errorf("arguments %q", args)
	}
	file, err := os.Open(given["--config-file"])
	if err != nil {
		return m, err
	}
	defer file.Close()
	var c configuration
	if err := strict(file, &c); err != nil {
		return m, fmt.Errorf("the configuration: %w", err)
	}
	return c.machine()
}

func (c configuration) machine() (m machine, err error) {
	if c.Boot == nil || c.Machine == nil || c.Vsock == nil || len(c.Network) != 1 {
		return m, errors.New("the configuration is not complete")
	}
	if c.Machine.CPUs < 1 || c.Machine.CPUs > 32 || c.Machine.Memory < 1 || c.Vsock.CID < 3 || !identifier.MatchString(c.Network[0].ID) {
		return m, fmt.Errorf("out of range: %+v", c)
	}
	m = machine{commandLine: c.Boot.Args, vsock: root(c.Vsock.Path), tap: c.Network[0].Tap, files: []string{root(c.Boot.Kernel), root(c.Boot.Initrd)}}
	for _, d := range c.Drives {
		if d.Root == nil || !d.ReadOnly || !identifier.MatchString(d.ID) || d.Engine == "Async" { // which needs io_uring
			return m, fmt.Errorf("drive %+v", d)
		}
		m.files = append(m.files, d.Path)
	}
	tell("configuration", c.Machine.CPUs, c.Machine.Memory, len(c.Drives), c.Network[0].MAC)
	return m, nil
}
