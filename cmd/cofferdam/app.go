package main

import (
	"io"
	"os"
	"os/user"
	"path/filepath"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// app is what every command needs: the three streams and where state lies. It is made in main and passed in; nothing is global.
type app struct {
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	// state is the state directory: runs/ and audit/ lie below it.
	state string
	// secrets is where credentials/ and seal/ lie, if not in the state directory.
	secrets string
	// home is the person's home directory, empty if there is none.
	home string
	// settings is the person's settings directory, where servers.json lies; empty if there is none.
	settings string
}

// auditDir is where the audit log lies.
func (a *app) auditDir() string { return filepath.Join(a.state, "audit") }

// imagesDir is where images are kept.
func (a *app) imagesDir() string { return filepath.Join(a.state, "images") }

// homeDir returns HOME, or what the list of users says where the environment is bare, as under cron. It is absolute, or empty.
func homeDir(getenv func(string) string) string {
	home := getenv("HOME")
	if home == "" {
		if u, err := user.Current(); err == nil {
			home = u.HomeDir
		}
	}
	if !filepath.IsAbs(home) {
		return ""
	}
	return filepath.Clean(home)
}

// settingsDir returns the directory for settings below XDG_CONFIG_HOME, or the one that stands for it. It is absolute, or empty.
func settingsDir(getenv func(string) string, home string) string {
	switch dir := getenv("XDG_CONFIG_HOME"); {
	case filepath.IsAbs(dir):
		return filepath.Join(dir, "cofferdam")
	case home != "":
		return filepath.Join(home, ".config", "cofferdam")
	}
	return ""
}

// stateDir returns COFFERDAM_STATE, or /var/lib/cofferdam for root, or the XDG state directory of the user. It is absolute.
func stateDir(getenv func(string) string, uid int, home string) (string, error) {
	dir := getenv("COFFERDAM_STATE")
	switch {
	case dir != "":
	case uid == 0:
		dir = "/var/lib/cofferdam"
	case filepath.IsAbs(getenv("XDG_STATE_HOME")):
		dir = filepath.Join(getenv("XDG_STATE_HOME"), "cofferdam")
	case home != "":
		dir = filepath.Join(home, ".local", "state", "cofferdam")
	default:
		return "", fault.New(fault.Invalid, "there is no place for records: no home directory is known").WithHint("set HOME, or COFFERDAM_STATE to a directory of your own")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fault.New(fault.Invalid, "cannot use the state directory").WithHint("set COFFERDAM_STATE to an absolute path").Because(err)
	}
	return dir, nil
}
