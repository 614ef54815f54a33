package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// findings gathers outcomes by attack and column. It is safe for concurrent use.
type findings struct {
	mu       sync.Mutex
	order    map[string][]string // ids by column, as they were made
	what     map[string]string
	outcomes map[string]map[string]outcome
}

func newFindings() *findings {
	return &findings{order: map[string][]string{}, what: map[string]string{}, outcomes: map[string]map[string]outcome{}}
}

// columns of the table: who tried, at which level, and other sandboxes.
func columns() (all []string) {
	for _, a := range levels() {
		for _, name := range []string{"root", "rootless"} {
			all = append(all, as{name: name, level: a.level}.column())
		}
	}
	for _, c := range controls() {
		all = append(all, c.name)
	}
	return all
}

// column is where a user's outcomes stand.
func (u as) column() string { return u.able().level + ", " + u.name }

// note keeps an outcome and prints its line.
func (f *findings) note(column, id, what string, o outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.outcomes[id] == nil {
		f.outcomes[id] = map[string]outcome{}
		f.what[id] = what
	}
	f.outcomes[id][column] = o
	f.order[column] = append(f.order[column], id)
	fmt.Printf("%s %v %s: %s (%s)\n", id, o.finding, column, o.evidence, what)
}

// table is what the outcomes come to.
func (f *findings) table() table {
	t := table{what: f.what, words: map[string]map[string]string{}}
	for _, column := range columns() {
		for _, id := range f.order[column] {
			word := f.outcomes[id][column].finding.String()
			if !strings.Contains(column, ",") {
				word = strings.ToLower(word) // refused there, by whatever means: there is no attribution
			}
			t.add(id, column, word)
		}
	}
	return t
}

// publish prints the table.
func (f *findings) publish() { fmt.Println(f.table()) }

// save writes the page where UPDATE is set, with what it had of the columns that have not run this time.
func (f *findings) save(t *testing.T) {
	if os.Getenv("UPDATE") == "" {
		return
	}
	path := filepath.Join(testenv.Module(), "docs", "attacks.md")
	before, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(attacksText(merged(parseTable(string(before)), f.table()))), 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}

// attacksText is docs/attacks.md.
func attacksText(t table) string {
	return attacksPage + advisoriesTable() + absentTables() + "## Every attack\n\n" + t.String()
}

// TestAttackPage holds that the page is what this program writes: its words come from runs, all else from here. UPDATE writes it anew.
func TestAttackPage(t *testing.T) {
	path := filepath.Join(testenv.Module(), "docs", "attacks.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	table := parseTable(string(page))
	if len(table.ids) < 500 || table.words["A2"]["container, root"] != "BLOCKED" {
		t.Fatalf("the table is not understood: %d lines", len(table.ids))
	}
	newFindings().save(t)
	if text := attacksText(table); text != string(page) && os.Getenv("UPDATE") == "" {
		t.Error("docs/attacks.md is not as it is made: UPDATE=1 go test ./e2e -run TestAttackPage")
	}
}

// attacksPage begins docs/attacks.md.
const attacksPage = `# Attacks

Made by ` + "`UPDATE=1 make attack`" + `; do not edit. Every attack is made by real programs inside a sandbox, as root and as an ordinary user of the host.
BLOCKED means: it was refused by the mechanism that is meant to refuse it (its error, or its record in the audit log), while the same act at an allowed place worked. A dash means that there is no such attack there, or that it was not tried.

The last two columns of the long table are controls. The same scripts run under ` + "`bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all --share-net`" + ` and
` + "`unshare -Urnmpf --mount-proc`" + `; there, "blocked" means only that the script did not succeed, for whatever reason. With ` + "`unshare -n`" + ` there is no network at all, allowed places included.

` + "`make attack`" + ` makes all of them at level container, ` + "`LEVEL=gvisor make attack`" + ` and ` + "`LEVEL=vm-emulated make attack`" + ` at those levels; with ` + "`UPDATE=1`" + ` each writes its own columns, and the table shows those that have been written. In an emulated machine
all programs are some tens of times slower, so what is given a time is given six times as much there, and the root file system is a tree with this machine's programs. Continuous integration makes all of them at level container, and at the other
levels, as one user, those in which the level has a part (` + "`TestAttackLevels`" + `; in an emulated machine a selection of those): what is refused by the gateway's protocols is refused by the same program at every level.

`
