package testenv

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// postgresPrograms is the directory of the newest PostgreSQL server that a distribution's package has installed, or that is in the search path.
func postgresPrograms() (string, error) {
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); len(found) > 0 {
		return filepath.Dir(slices.Max(found)), nil
	}
	path, err := exec.LookPath("initdb")
	return filepath.Dir(path), err
}

// StartPostgres starts a PostgreSQL server with an empty cluster that only this machine's users reach, through a Unix socket. It returns the address of
// its database "postgres", whose superuser asks no password. Test for the need "postgres" first. Once for a test process is enough: make a database for
// each test. The server is quick, not safe: it would lose data if the machine fell over.
func StartPostgres() (dsn string, stop func() error, err error) {
	programs, err := postgresPrograms()
	if err != nil {
		return "", nil, err
	}
	// Not below the test's own directory, which other users cannot enter. The name is short: it is part of a socket's.
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		return "", nil, err
	}
	server := &postgresServer{dir: dir}
	if err := server.start(programs); err != nil {
		return "", nil, errors.Join(err, server.stop())
	}
	return "postgres://postgres@/postgres?host=" + url.QueryEscape(dir), server.stop, nil
}

type postgresServer struct {
	dir  string
	user *syscall.Credential // nil: ourselves
	main *exec.Cmd
}

func (s *postgresServer) start(programs string) error {
	if os.Geteuid() == 0 { // the server refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return err
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2, os.Chown(s.dir, uid, gid)); err != nil {
			return err
		}
		s.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(s.dir, "data")
	initdb := s.command(programs, "initdb", "--pgdata="+data, "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	s.main = s.command(programs, "postgres", "-D", data, "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200")
	output, err := os.Create(filepath.Join(s.dir, "output"))
	if err != nil {
		return err
	}
	defer output.Close()
	s.main.Stdout, s.main.Stderr = output, output
	if err := s.main.Start(); err != nil {
		s.main = nil
		return err
	}
	for range 300 {
		if err = s.command(programs, "pg_isready", "--quiet", "--host="+s.dir, "--username=postgres").Run(); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	said, _ := os.ReadFile(output.Name()) // only to explain
	return fmt.Errorf("the server does not answer: %w: %s", err, said)
}

func (s *postgresServer) command(programs, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(programs, name), args...)
	cmd.Dir = s.dir
	// A test process that is killed takes the server with it; SIGINT is its quick orderly end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.user, Pdeathsig: syscall.SIGINT}
	return cmd
}

func (s *postgresServer) stop() error {
	if s.main != nil {
		_ = s.main.Process.Signal(syscall.SIGINT) // it may have ended
		_ = s.main.Wait()                         // how it ends says nothing about the tests
	}
	return os.RemoveAll(s.dir)
}
