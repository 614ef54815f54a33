package supervisor

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/cgroup"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

func preparation() call.Prepare {
	spec := specification()
	return call.Prepare{Name: "warmwarm", Level: spec.Level, Hostname: spec.Hostname, Limits: spec.Limits, UIDBase: spec.UIDBase}
}

// prepared returns a connection at whose other end a sandbox waits, and its process 1.
func prepared(t *testing.T) (*call.Conn, <-chan error, int) {
	t.Helper()
	testenv.Need(t, "userns")
	conn, done := serve(t)
	p := preparation()
	if err := conn.Send(call.Request{Prepare: &p}); err != nil {
		t.Fatal(err)
	}
	r := reply(t, conn)
	if r.Prepared == nil || r.Prepared.PID == 0 {
		t.Fatalf("%+v", r.Refused)
	}
	return conn, done, r.Prepared.PID
}

func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is still there", pid)
		}
	}
	if found := cgroup.Find(groupName("warmwarm")); len(found) > 0 {
		t.Errorf("control groups are left: %q", found)
	}
}

// enough ends a sandbox, and looks for what must be gone of the one that was prepared.
func enough(t *testing.T, conn *call.Conn, done <-chan error, pid int) {
	t.Helper()
	_ = conn.Send(call.Request{Kill: &call.Kill{Reason: "enough"}}) // it may have ended: nobody answers its runner
	if r := reply(t, conn); r.Ended == nil || len(r.Ended.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	gone(t, pid)
}

// TestPrepared asks for what prepared sandboxes can become, and for what they cannot: that is built from the beginning, and is as strong.
func TestPrepared(t *testing.T) {
	folder := t.TempDir()
	for _, c := range []struct {
		name   string
		change func(*call.Create)
		warm   bool
	}{
		{"nothing", func(*call.Create) {}, true},
		{"a folder", func(s *call.Create) { s.Workspace = &call.Workspace{Source: folder, Target: "/work", Mode: "overlay"} }, true},
		{"more mounts than messages once had room for", func(s *call.Create) {
			for i := range 12 {
				s.Mounts = append(s.Mounts, call.Mount{Source: "/etc", Target: "/m" + strconv.Itoa(i)})
			}
		}, true},
		{"a mount in a mount", func(s *call.Create) {
			s.Mounts = []call.Mount{{Source: "/usr", Target: "/a"}, {Source: "/etc", Target: "/a/share"}}
		}, true},
		{"another size", func(s *call.Create) { s.Limits.Disk = 32 << 20; s.Limits.PIDs = 100 }, true},
		{"a folder that the host shares", func(s *call.Create) { s.Mounts = []call.Mount{{Source: folder, Target: "/work", Write: true}} }, false},
		{"another host name", func(s *call.Create) { s.Hostname = "elsewhere" }, false},
		{"other ids", func(s *call.Create) { s.UIDBase += 1 << 16 }, os.Geteuid() != 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, done, pid := prepared(t)
			spec := specification()
			c.change(&spec)
			lock, err := os.CreateTemp(folder, "lock")
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
			if err := conn.Send(call.Request{Create: &spec}, lock); err != nil {
				t.Fatal(err)
			}
			r := reply(t, conn)
			if r.Created == nil {
				t.Fatalf("%+v", r.Refused)
			}
			if r.Created.Warm != c.warm || (r.Created.PID == pid) != c.warm {
				t.Errorf("warm: %v, process %d of %d, want %v", r.Created.Warm, r.Created.PID, pid, c.warm)
			}
			enough(t, conn, done, pid)
		})
	}
}

// TestPlatformOfAnotherLevel asks for a platform at a level that has none, of a sandbox that is prepared and of one that is not: neither is made.
func TestPlatformOfAnotherLevel(t *testing.T) {
	testenv.Need(t, "userns")
	warm, warmDone, pid := prepared(t)
	cold, coldDone := serve(t)
	for _, conn := range []*call.Conn{warm, cold} {
		spec := specification()
		spec.Platform = "kvm"
		if err := conn.Send(call.Request{Create: &spec}); err != nil {
			t.Fatal(err)
		}
		if r := reply(t, conn); r.Refused == nil || r.Refused.Kind != fault.Invalid || !strings.Contains(r.Refused.Public, "has no platforms") {
			t.Errorf("%+v", r)
		}
	}
	for _, done := range []<-chan error{warmDone, coldDone} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	gone(t, pid)
}

// TestPreparedIsRefused asks for what a specification may not have: the refusal is the one that it would get anywhere.
func TestPreparedIsRefused(t *testing.T) {
	conn, done, pid := prepared(t)
	spec := specification()
	spec.Mounts = []call.Mount{{Source: "/no/such/path", Target: "/a"}}
	if err := conn.Send(call.Request{Create: &spec}); err != nil {
		t.Fatal(err)
	}
	if r := reply(t, conn); r.Refused == nil || r.Refused.Kind != fault.Invalid || !strings.Contains(r.Refused.Public, "/no/such/path") {
		t.Errorf("%+v", r)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	gone(t, pid)
}

// TestPreparedEnds ends a sandbox that waits in every way there is.
func TestPreparedEnds(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *call.Conn, int){
		"the caller goes": func(_ *testing.T, conn *call.Conn, _ int) { _ = conn.Close() },
		"another call": func(t *testing.T, conn *call.Conn, _ int) {
			p := preparation()
			if err := conn.Send(call.Request{Prepare: &p}); err != nil {
				t.Fatal(err)
			}
			if r := reply(t, conn); r.Refused == nil {
				t.Errorf("a second sandbox was prepared: %+v", r)
			}
		},
		"process 1 is killed": func(t *testing.T, conn *call.Conn, pid int) {
			p, err := os.FindProcess(pid)
			if err != nil || p.Kill() != nil {
				t.Fatal("cannot kill it")
			}
			var r call.Reply
			if _, err := conn.Receive(&r); !errors.Is(err, io.EOF) {
				t.Errorf("a word about it: %+v, %v", r, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn, done, pid := prepared(t)
			end(t, conn, pid)
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("the supervisor stays")
			}
			gone(t, pid)
		})
	}
}

// TestPreparedDiedBefore says what a sandbox is to be that has died since it was given away: it is built from the beginning, and its control group is named as the record says.
func TestPreparedDiedBefore(t *testing.T) {
	conn, done, pid := prepared(t)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(mourning / 4)
	spec := specification()
	if err := conn.Send(call.Request{Create: &spec}); err != nil {
		t.Fatal(err)
	}
	if r := reply(t, conn); r.Created == nil || r.Created.Warm || r.Created.PID == pid {
		t.Fatalf("%+v, refused %+v", r.Created, r.Refused)
	}
	if found := cgroup.Find(groupName("warmwarm")); os.Geteuid() == 0 && len(found) == 0 {
		t.Error("its control group has another name than the record's")
	}
	enough(t, conn, done, pid)
}

// TestPreparedIsBare looks at a sandbox that waits from outside: no packet passes, and nothing that is not ours runs.
func TestPreparedIsBare(t *testing.T) {
	testenv.Need(t, "root", "tool:nsenter", "tool:nft")
	conn, done, pid := prepared(t)
	said, err := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--net", "nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	out := string(said)
	if strings.Count(out, "policy drop") != 2 || strings.Contains(out, "accept") || strings.Contains(out, "redirect") {
		t.Errorf("the room is not closed:\n%s", out)
	}
	members, _ := filepath.Glob("/sys/fs/cgroup/*/" + groupName("warmwarm") + "/cgroup.procs") // the pattern is ours
	seen := map[string]bool{}
	for _, list := range members {
		data, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		for member := range strings.FieldsSeq(string(data)) {
			name, _ := os.ReadFile("/proc/" + member + "/cmdline") // it may have ended
			seen[strings.ReplaceAll(string(name), "\x00", " ")] = true
		}
	}
	if len(members) > 0 && (len(seen) != 2 || !seen["cofferdam-runner "] || !seen["cofferdam-steward "]) {
		t.Errorf("in it are %v", seen)
	}
	_ = conn.Close() // the end
	<-done
	gone(t, pid)
}
