package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// table is what is printed of a run, and kept of several: a word for each attack and column.
type table struct {
	ids   []string // in the order of the lines
	what  map[string]string
	words map[string]map[string]string // by id, then column
}

func (t *table) add(id, column, word string) {
	if t.words[id] == nil {
		t.words[id] = map[string]string{}
		t.ids = append(t.ids, id)
	}
	t.words[id][column] = word
}

// has says whether anything was tried in a column.
func (t table) has(column string) bool {
	return slices.ContainsFunc(t.ids, func(id string) bool { return t.words[id][column] != "" })
}

// merged is a table with the columns of another in place of its own. A run at level container makes every attack there is: what it has not is gone.
func merged(old, run table) table {
	t := table{what: map[string]string{}, words: map[string]map[string]string{}}
	sources := []table{old, run}
	if run.has(columns()[0]) {
		sources = sources[1:]
	}
	for _, source := range sources {
		for _, id := range source.ids {
			if t.words[id] != nil {
				continue
			}
			if t.what[id] = run.what[id]; t.what[id] == "" {
				t.what[id] = old.what[id]
			}
			for _, column := range columns() {
				from := old
				if run.has(column) {
					from = run
				}
				if word := from.words[id][column]; word != "" {
					t.add(id, column, word)
				}
			}
		}
	}
	return t
}

// String is the table in Markdown, and its sums.
func (t table) String() string {
	titles := slices.DeleteFunc(columns(), func(column string) bool { return !t.has(column) })
	var b strings.Builder
	fmt.Fprintf(&b, "| id | attack | %s |\n|---|---|%s\n", strings.Join(titles, " | "), strings.Repeat("---|", len(titles)))
	sums := map[string]map[string]int{}
	for _, id := range t.ids {
		fmt.Fprintf(&b, "| %s | %s |", id, strings.ReplaceAll(t.what[id], "|", "\\|"))
		for _, column := range titles {
			word := t.words[id][column]
			if word == "" {
				word = absent.String()
			}
			if sums[column] == nil {
				sums[column] = map[string]int{}
			}
			sums[column][strings.ToUpper(word)]++
			b.WriteString(" " + word + " |")
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	for _, column := range titles {
		n := sums[column]
		fmt.Fprintf(&b, "%s: %d blocked, %d open, %d unknown, %d not tried.\n", column, n[blocked.String()], n[open.String()], n[unknown.String()], n[absent.String()])
	}
	return b.String()
}

// parseTable reads the table of a page.
func parseTable(page string) table {
	t := table{what: map[string]string{}, words: map[string]map[string]string{}}
	const head = "| id | attack | "
	_, page, found := strings.Cut(page, head)
	if !found {
		return t
	}
	var titles []string
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), " |")
		if titles == nil {
			titles = strings.Split(line, " | ")
			continue
		}
		cells := strings.Split(strings.TrimPrefix(line, "| "), " | ")
		first := len(cells) - len(titles) // before it is what the attack is, in which the mark may occur
		if first < 2 {
			continue
		}
		t.what[cells[0]] = strings.ReplaceAll(strings.Join(cells[1:first], " | "), "\\|", "|")
		for i, column := range titles {
			if word := cells[first+i]; word != absent.String() {
				t.add(cells[0], column, word)
			}
		}
	}
	return t
}

// TestMergedTable runs one level after another: each keeps the others' columns, and a run of the first level takes away what it does not have.
func TestMergedTable(t *testing.T) {
	made := func(column string, words ...string) table {
		t := table{what: map[string]string{}, words: map[string]map[string]string{}}
		for i := 0; i < len(words); i += 2 {
			t.what[words[i]] = "a | b of " + words[i]
			t.add(words[i], column, words[i+1])
		}
		return t
	}
	const first, machine = "container, root", "vm-emulated, root"
	page := merged(made(first, "A1", "BLOCKED", "A2", "OPEN"), made(machine, "A2", "BLOCKED", "A3", "UNKNOWN"))
	page = parseTable("before\n" + page.String())
	again := merged(page, made(first, "A2", "BLOCKED", "A4", "BLOCKED"))
	for _, c := range []struct {
		t    table
		want string
	}{
		{page, "| A1 | a \\| b of A1 | BLOCKED | - |\n| A2 | a \\| b of A2 | OPEN | BLOCKED |\n| A3 | a \\| b of A3 | - | UNKNOWN |\n\n" + first + ": 1 blocked, 1 open, 0 unknown, 1 not tried.\n" + machine + ": 1 blocked, 0 open, 1 unknown, 1 not tried.\n"},
		{again, "| A2 | a \\| b of A2 | BLOCKED | BLOCKED |\n| A4 | a \\| b of A4 | BLOCKED | - |\n\n" + first + ": 2 blocked, 0 open, 0 unknown, 0 not tried.\n" + machine + ": 1 blocked, 0 open, 0 unknown, 1 not tried.\n"},
	} {
		if got := c.t.String(); got != "| id | attack | "+first+" | "+machine+" |\n|---|---|---|---|\n"+c.want {
			t.Errorf("%s", got)
		}
	}
}
