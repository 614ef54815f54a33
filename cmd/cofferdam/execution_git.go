package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cofferdam/cofferdam/internal/credential"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/gateway"
	"github.com/cofferdam/cofferdam/internal/netname"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// gitProxy is what a run needs so that its programs can use Git through the gateway.
type gitProxy struct {
	token   string
	scratch []gateway.Scratch
	close   func()
}

// judgedAtOnce is how many pushes can be judged at once by what is in them.
const judgedAtOnce = 4

// openGit opens what the Git proxy needs, while this process can still open files.
func (e *execution) openGit() error {
	if !e.settled.policy.ServesGit() {
		return nil
	}
	e.git.token = "cfd_git_" + rand.Text() + rand.Text()
	dir := filepath.Dir(e.store.Changes(e.id))
	var files []*os.File
	e.git.close = func() {
		for _, f := range files {
			_ = f.Close() // it has no name: what is in it goes with it
		}
	}
	for range judgedAtOnce {
		f, err := unnamed(dir)
		if err != nil {
			return fault.New(fault.Unavailable, "cannot make room in %s in which pushes are judged", dir).Because(err)
		}
		files = append(files, f)
		e.git.scratch = append(e.git.scratch, f)
	}
	return nil
}

// unnamed opens a file that is gone with the last descriptor of it, whatever happens to this process.
func unnamed(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return f, err
	}
	if f, err = os.CreateTemp(dir, "push"); err != nil { // a file system without O_TMPFILE
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// gitCredentials checks the credentials that the Git proxy lends against what find knows of them, and returns their names.
func gitCredentials(p *policy.Policy, find func(credential.Name) (credential.Meta, error)) ([]credential.Name, error) {
	var names []credential.Name
	add := func(use string, host netname.Host, port uint16) error {
		if use == "" {
			return nil
		}
		name, err := credential.ParseName(use)
		if err != nil {
			return err
		}
		meta, err := find(name)
		if err != nil {
			return err
		}
		if meta.Kind == credential.AWS {
			return fault.New(fault.Invalid, "the credential %s signs requests, which Git servers do not know", name)
		}
		names = append(names, name)
		return meta.Fits(meta.Headers()[0], credential.Scope{Hosts: []string{string(host)}, Ports: []uint16{port}})
	}
	for _, u := range p.GitUpstreams() {
		if err := add(u.Credential, u.Host, u.Port); err != nil {
			return nil, err
		}
		if err := add(u.API.Credential, u.API.Host, u.API.Port); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// environment sets git up to go through the proxy: for the addresses that people and scripts write, whichever way they write them.
func (g *gitProxy) environment(p *policy.Policy, env []string) []string {
	if g.token == "" {
		return nil
	}
	proxy := strings.TrimSuffix(policy.GitProxy, "/")
	settings := [][2]string{
		{"credential." + proxy + ".helper", `!f() { test "$1" = get && printf 'username=cofferdam\npassword=%s\n' "$COFFERDAM_GIT_TOKEN"; }; f`},
		{"credential." + proxy + ".useHttpPath", "false"},
	}
	for _, u := range p.GitUpstreams() {
		instead := "url." + proxy + "/" + u.Name + "/.insteadOf"
		host := string(u.Host)
		https := "https://" + host
		if u.Port != 443 {
			https += ":" + strconv.Itoa(int(u.Port))
		}
		below := strings.TrimPrefix(u.Path+"/", "/")
		for _, written := range []string{https + "/" + below, "ssh://git@" + host + "/" + below, "git@" + host + ":" + below} {
			settings = append(settings, [2]string{instead, written})
		}
	}
	first := configured(env)
	out := []string{
		"COFFERDAM_GIT_TOKEN=" + g.token,
		"COFFERDAM_GIT_URL=" + strings.Replace(policy.GitProxy, "://", "://cofferdam:"+g.token+"@", 1),
		"GIT_CONFIG_COUNT=" + strconv.Itoa(first+len(settings)),
	}
	for i, s := range settings {
		out = append(out, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", first+i, s[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", first+i, s[1]))
	}
	return out
}

// configured is how many settings of git the person has put into the environment already.
func configured(env []string) int {
	n := 0
	for _, variable := range env {
		if value, ok := strings.CutPrefix(variable, "GIT_CONFIG_COUNT="); ok {
			n, _ = strconv.Atoi(value) // what is no number, git refuses
		}
	}
	return max(0, min(n, 1000))
}
