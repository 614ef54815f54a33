package confine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const (
	readFile  = landlock.AccessFSSet(ll.AccessFSReadFile)
	readTree  = readFile | landlock.AccessFSSet(ll.AccessFSReadDir)
	writeFile = readFile | landlock.AccessFSSet(ll.AccessFSWriteFile|ll.AccessFSTruncate)
	writeTree = readTree | writeFile | landlock.AccessFSSet(ll.AccessFSMakeReg|ll.AccessFSMakeDir|ll.AccessFSRemoveFile|ll.AccessFSRemoveDir|ll.AccessFSRefer)
)

// standardFiles are read by the Go libraries for names, services, media types and the local time zone; standardTrees hold time zones
// and certificates, in the places where distributions keep them.
func standardFiles() []string {
	return []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/mdns.allow",
		"/etc/services", "/etc/protocols", "/etc/mime.types", "/etc/localtime"}
}

func standardTrees() []string {
	return []string{"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates", "/usr/share/zoneinfo"}
}

// landlockVersion is the version of Landlock's interface to use. Kernels whose signal scope would keep the threads of one process from
// signalling each other, as the Go runtime does, count as the version before it.
func landlockVersion() int {
	version, err := ll.LandlockGetABIVersion()
	if err != nil || version < 0 {
		return 0
	}
	const signalScopeFixed = 1 << 1
	if errata, err := ll.LandlockGetErrata(); version >= 6 && (err != nil || errata&signalScopeFixed == 0) {
		version = 5
	}
	return min(version, len(landlockConfigs())-1)
}

func landlockConfigs() []landlock.Config {
	return []landlock.Config{{}, landlock.V1, landlock.V2, landlock.V3, landlock.V4, landlock.V5, landlock.V6,
		landlock.V7, landlock.V8, landlock.V9, landlock.V10, landlock.V11}
}

// restrictFiles takes the file system away, except what was asked for; and signals and abstract sockets of other processes, where
// the kernel can. It does not take TCP: dialling is what a gateway is for.
func (p *plan) restrictFiles() error {
	if p.landlock == 0 {
		return nil // allowed by newPlan, reported by verify
	}
	full := landlockConfigs()[p.landlock]
	config := landlock.Config{HandledAccessFS: full.HandledAccessFS, Scoped: full.Scoped}
	rules, err := p.fileRules(config.HandledAccessFS)
	if err != nil {
		return err
	}
	if err := config.Restrict(rules...); err != nil {
		return fmt.Errorf("limit the gateway's files: %w", err)
	}
	return nil
}

func (p *plan) fileRules(handled landlock.AccessFSSet) ([]landlock.Rule, error) {
	var rules []landlock.Rule
	for _, path := range append(standardFiles(), standardTrees()...) {
		if rule, err := fileRule(path, readFile, readTree, handled); err == nil {
			rules = append(rules, rule)
		} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return nil, err
		}
	}
	// Network managers replace resolv.conf by renaming a new file over it, which a rule for the old file does not cover: without its
	// directory, a laptop that changes networks would lose its names. Of the files there, those of others stay closed by their modes.
	if target, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil && filepath.Dir(target) != "/" {
		rules = append(rules, landlock.PathAccess(readFile, filepath.Dir(target)))
	}
	rules = append(rules, landlock.PathAccess(readTree, taskDir())) // for verify
	for _, path := range p.cfg.ReadPaths {
		rule, err := fileRule(path, readFile, readTree, handled)
		if err != nil {
			return nil, fault.New(fault.Invalid, "path to read").Because(err)
		}
		rules = append(rules, rule)
	}
	for _, path := range p.cfg.WritePaths {
		rule, err := fileRule(path, writeFile, writeTree, handled)
		if err != nil {
			return nil, fault.New(fault.Invalid, "path to write").Because(err)
		}
		rules = append(rules, rule)
	}
	return rules, nil
}

// fileRule gives the rights that fit: the kernel refuses those of directories for a file. Rights that it does not know at this version
// it does not take away either.
func fileRule(path string, file, tree, handled landlock.AccessFSSet) (landlock.Rule, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		file = tree
	}
	return landlock.PathAccess(file&handled, path), nil
}

// taskDir is the directory of this process's threads. It is named by number, since "self" is a link that the rule must not end at.
func taskDir() string { return "/proc/" + strconv.Itoa(os.Getpid()) + "/task" }
