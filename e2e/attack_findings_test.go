package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// columns of the table.
func columns() []string { return []string{"root", "rootless", "bwrap", "unshare"} }

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

// ids are all attacks, in the order of the first column, then what only later ones have.
func (f *findings) ids() (all []string) {
	seen := map[string]bool{}
	for _, column := range columns() {
		for _, id := range f.order[column] {
			if !seen[id] {
				seen[id] = true
				all = append(all, id)
			}
		}
	}
	return all
}

// publish prints the table and, where UPDATE is set, writes the page.
func (f *findings) publish(t *testing.T) {
	table := f.table()
	fmt.Println(table)
	if os.Getenv("UPDATE") == "" || os.Getenv("LEVEL") != "" {
		return
	}
	page := attacksPage + advisoriesTable() + atGVisorTable() + "## Every attack\n\n" + table
	if err := os.WriteFile(filepath.Join(testenv.Module(), "docs", "attacks.md"), []byte(page), 0o644); err != nil {
		t.Error(err)
	}
}

// table prints all findings.
func (f *findings) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| id | attack | cofferdam, root | cofferdam, rootless | bwrap | unshare |\n|---|---|---|---|---|---|\n")
	sums := map[string]map[finding]int{}
	for _, id := range f.ids() {
		fmt.Fprintf(&b, "| %s | %s |", id, strings.ReplaceAll(f.what[id], "|", "\\|"))
		for _, column := range columns() {
			o, ok := f.outcomes[id][column]
			if !ok {
				o.finding = absent
			}
			if sums[column] == nil {
				sums[column] = map[finding]int{}
			}
			sums[column][o.finding]++
			word := o.finding.String()
			if column == "bwrap" || column == "unshare" {
				word = strings.ToLower(word) // refused there, by whatever means: there is no attribution
			}
			fmt.Fprintf(&b, " %s |", word)
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for _, column := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(&b, "%s: %d blocked, %d open, %d unknown, %d not tried.\n", column, sums[column][blocked], sums[column][open], sums[column][unknown], sums[column][absent])
	}
	return b.String()
}

// attacksPage begins docs/attacks.md.
const attacksPage = `# Attacks

Made by ` + "`UPDATE=1 make attack`" + `; do not edit. Every attack is made by real programs inside a sandbox, as root and as an ordinary user of the host.
BLOCKED means: it was refused by the mechanism that is meant to refuse it (its error, or its record in the audit log), while the same act at an allowed place worked.

The last two columns of the long table are controls. The same scripts run under ` + "`bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all --share-net`" + ` and
` + "`unshare -Urnmpf --mount-proc`" + `; there, "blocked" means only that the script did not succeed, for whatever reason. With ` + "`unshare -n`" + ` there is no network at all, allowed places included.

` + "`make attack`" + ` makes all of them at level container, ` + "`LEVEL=gvisor make attack`" + ` at level gvisor. Continuous integration makes all of them at level container, and at the other levels, as one user,
those in which the level has a part (` + "`TestAttackLevels`" + `): what is refused by the gateway's protocols is refused by the same program at every level.

`
