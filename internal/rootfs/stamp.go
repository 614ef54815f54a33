package rootfs

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is more than what the kernel's clock for files moves on by, so that a change after this long cannot have the time of one before.
const tick = 20 * time.Millisecond

// Stamp returns a mark of the places of the host on which depends what is left out of its view: the list of users, and each directory in which a hidden path
// is or may appear. It changes with them. A view that was composed before what is now the same stamp leaves out what one composed now would.
//
// It waits until no change that it cannot tell from a later one has just been made.
func Stamp(hidden []Hidden) (string, error) {
	places := watched(hidden)
	for range 50 {
		mark, latest := stampOf(places)
		if age := time.Since(latest); age > tick || age < 0 {
			return mark, nil
		}
		time.Sleep(tick)
	}
	return "", fmt.Errorf("the host's system directories keep changing")
}

// watched are those places.
func watched(hidden []Hidden) []string {
	places := []string{"/", "/etc/passwd"}
	for _, h := range hidden {
		places = append(places, filepath.Dir(h.Path)) // patterns are in the last element only
	}
	slices.Sort(places)
	return slices.Compact(places)
}

// stampOf returns the mark and the time of the latest change.
func stampOf(places []string) (mark string, latest time.Time) {
	var b strings.Builder
	for _, place := range places {
		var s unix.Stat_t
		if err := unix.Stat(place, &s); err != nil {
			fmt.Fprintln(&b, place, err) // what is not there is told by its absence
			continue
		}
		fmt.Fprintln(&b, place, s.Dev, s.Ino, s.Mtim.Nano(), s.Ctim.Nano())
		if at := time.Unix(0, s.Ctim.Nano()); at.After(latest) {
			latest = at
		}
	}
	return b.String(), latest
}

// Same says whether a stamp is still right.
func Same(stamp string, hidden []Hidden) bool {
	now, _ := stampOf(watched(hidden))
	return now == stamp
}
