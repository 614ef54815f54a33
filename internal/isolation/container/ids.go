package container

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// IDCount is how many user and group ids a sandbox of a privileged supervisor has: 0 to 65534. The id after the last is left to its gateway.
const IDCount = 65535

// IDs says how user and group ids inside relate to the host's. The zero value maps nothing, and such a sandbox cannot start.
type IDs struct {
	uid, gid []idRange
	helper   bool // written by newuidmap and newgidmap, which check /etc/subuid and /etc/subgid
	// Trees says that ids are mapped through mounts too, so that the host's files keep their owners inside.
	Trees bool
}

type idRange struct{ inside, outside, count int }

// PrivilegedIDs maps 0..65534 to a range of host ids that nobody else has. The caller is root.
func PrivilegedIDs(base uint32) IDs {
	r := []idRange{{0, int(base), IDCount}}
	return IDs{uid: r, gid: r, Trees: true}
}

// SingleID maps root inside to the calling user and nothing else.
func SingleID() IDs {
	return IDs{uid: []idRange{{0, os.Getuid(), 1}}, gid: []idRange{{0, os.Getgid(), 1}}}
}

// SingleNobody maps user and group 65534 inside to the calling user and nothing else: there is no root, for a machine that needs none.
func SingleNobody() IDs {
	return IDs{uid: []idRange{{nobody, os.Getuid(), 1}}, gid: []idRange{{nobody, os.Getgid(), 1}}}
}

// first is the first user id inside.
func (ids IDs) first() int {
	if len(ids.uid) == 0 {
		return 0
	}
	return ids.uid[0].inside
}

// SubordinateIDs maps root inside to the calling user and the rest to the user's ranges in /etc/subuid and /etc/subgid.
func SubordinateIDs() (IDs, error) {
	for _, program := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(program); err != nil {
			return IDs{}, fmt.Errorf("%s: %w", program, err)
		}
	}
	uid, err := subordinate("/etc/subuid", os.Getuid())
	if err != nil {
		return IDs{}, err
	}
	gid, err := subordinate("/etc/subgid", os.Getuid())
	if err != nil {
		return IDs{}, err
	}
	return IDs{
		uid:    append([]idRange{{0, os.Getuid(), 1}}, uid),
		gid:    append([]idRange{{0, os.Getgid(), 1}}, gid),
		helper: true,
	}, nil
}

// Setgroups says whether the sandbox may have supplementary groups. With one mapped group it may not: dropping a group could grant what the group was denied (user_namespaces(7)).
func (ids IDs) Setgroups() bool { return ids.Trees || ids.helper }

// subordinate reads a user's first range from a file of subuid(5)'s form.
func subordinate(file string, uid int) (idRange, error) {
	f, err := os.Open(file)
	if err != nil {
		return idRange{}, err
	}
	defer f.Close()
	names := []string{strconv.Itoa(uid)}
	if u, err := user.LookupId(names[0]); err == nil {
		names = append(names, u.Username)
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) != 3 || (fields[0] != names[0] && fields[0] != names[len(names)-1]) {
			continue
		}
		start, err1 := strconv.Atoi(fields[1])
		count, err2 := strconv.Atoi(fields[2])
		if err := errors.Join(err1, err2); err != nil || start <= 0 || count < 1 {
			return idRange{}, fmt.Errorf("%s: line %q: bad range", file, lines.Text())
		}
		return idRange{inside: 1, outside: start, count: min(count, IDCount-1)}, nil
	}
	return idRange{}, fmt.Errorf("%s has no range for %s", file, names[len(names)-1])
}

// write maps the ids of a child's user namespace.
func (ids IDs) write(pid int) error {
	if len(ids.uid) == 0 {
		return errors.New("no ids to map")
	}
	if ids.helper {
		return errors.Join(runMapper("newuidmap", pid, ids.uid), runMapper("newgidmap", pid, ids.gid))
	}
	if !ids.Setgroups() {
		if err := writeProc(pid, "setgroups", "deny"); err != nil {
			return err
		}
	}
	if err := writeProc(pid, "uid_map", format(ids.uid)); err != nil {
		return err
	}
	return writeProc(pid, "gid_map", format(ids.gid))
}

func writeProc(pid int, name, content string) error {
	// One write(2): the kernel takes a map only whole.
	f, err := os.OpenFile(procPath(pid, name), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("map ids: %w", err)
	}
	_, err = f.WriteString(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("map ids: write %s: %w", name, err)
	}
	return nil
}

func format(ranges []idRange) string {
	var b strings.Builder
	for _, r := range ranges {
		fmt.Fprintf(&b, "%d %d %d\n", r.inside, r.outside, r.count)
	}
	return b.String()
}

func runMapper(program string, pid int, ranges []idRange) error {
	args := []string{strconv.Itoa(pid)}
	for _, r := range ranges {
		args = append(args, strconv.Itoa(r.inside), strconv.Itoa(r.outside), strconv.Itoa(r.count))
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// allCapabilities lists every capability that the running kernel can have.
func allCapabilities() []uintptr {
	var all []uintptr
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		all = append(all, c)
	}
	return all
}
