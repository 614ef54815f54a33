// Package receipt (WORDS) is what is said about the end of a sandbox, item by item: what was destroyed, how that was looked for, and with what result.
//
// An item says Gone only if somebody looked and did not find it. What cannot be observed is listed as such.
package receipt

import (
	"fmt"
	"strings"
	"time"
)

// Result is what was found.
type Result string

// The results.
const (
	Gone        Result = "gone"         // looked for, and not there any more
	Remains     Result = "remains"      // looked for, and still there, or it could not be looked for; Problem says which
	NotObserved Result = "not observed" // nothing tells
	Kept        Result = "kept"         // on purpose; How says where
)

// Item is one thing that a sandbox had.
type Item struct {
	What    string    `json:"what"`
	How     string    `json:"how"`     // it was destroyed and looked for
	Checked Result    `json:"checked"` // with what result
	At      time.Time `json:"at"`      // when, UTC
	Problem string    `json:"problem,omitempty"`
}

// Looked is an item that was looked for just now: it is gone if err is nil.
func Looked(what, how string, err error) Item {
	i := Item{What: what, How: how, Checked: Gone, At: now()}
	if err != nil {
		i.Checked, i.Problem = Remains, err.Error()
	}
	return i
}

// Unobserved is an item that nobody can look for; how says why.
func Unobserved(what, how string) Item {
	return Item{What: what, How: how, Checked: NotObserved, At: now()}
}

// Left is an item that is kept on purpose; where says in what place.
func Left(what, where string) Item { return Item{What: what, How: where, Checked: Kept, At: now()} }

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// Names lists what is gone.
func Names(items []Item) []string {
	var names []string
	for _, i := range items {
		if i.Checked == Gone {
			names = append(names, i.What)
		}
	}
	return names
}

// Problems lists what remains, and why.
func Problems(items []Item) []string {
	var problems []string
	for _, i := range items {
		if i.Checked == Remains {
			problems = append(problems, fmt.Sprintf("%s: %s", i.What, i.Problem))
		}
	}
	return problems
}

// Words counts the items by their results, in a few words.
func Words(items []Item) string {
	var parts []string
	for _, r := range []Result{Gone, Remains, NotObserved, Kept} {
		n := 0
		for _, i := range items {
			if i.Checked == r {
				n++
			}
		}
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, r))
		}
	}
	return strings.Join(parts, ", ")
}
