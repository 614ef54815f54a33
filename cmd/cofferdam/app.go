package main

import (
	"io"
	"os"
	"path/filepath"
)

// app is what every command needs: the three streams and where state lies. It is made in main and passed in; nothing is global.
type app struct {
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	// state is the state directory: runs/ and audit/ lie below it.
	state string
}

// auditDir is where the audit log lies.
func (a *app) auditDir() string { return filepath.Join(a.state, "audit") }

// stateDir returns COFFERDAM_STATE, or /var/lib/cofferdam for root, or the XDG state directory of the user.
func stateDir(getenv func(string) string, uid int) string {
	if dir := getenv("COFFERDAM_STATE"); dir != "" {
		return dir
	}
	if uid == 0 {
		return "/var/lib/cofferdam"
	}
	if dir := getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "cofferdam")
	}
	return filepath.Join(getenv("HOME"), ".local", "state", "cofferdam")
}
