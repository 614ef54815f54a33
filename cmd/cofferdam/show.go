package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// jsonFlag registers --json for a command that ends with show.
func jsonFlag(cmd *cobra.Command) { cmd.Flags().Bool("json", false, "print JSON") }

// show prints what a command has found: as JSON where --json was given, else in words.
func show[T any](a *app, cmd *cobra.Command, found T, err error, words func(T) error) error {
	switch {
	case err != nil:
		return err
	case boolFlag(cmd, "json"):
		return a.writeJSON(found)
	}
	return words(found)
}

func (a *app) writeJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// newTable aligns columns.
func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 2, ' ', 0) }

// table writes rows as the other tables are written. What is empty is a hyphen.
func (a *app) table(head []string, rows [][]string) error {
	var b bytes.Buffer
	w := newTable(&b)
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, row := range rows {
		for i := range row {
			row[i] = cmp.Or(row[i], "-")
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := a.stdout.Write(b.Bytes())
	return err
}

// pairs writes what is known of one thing, a line each; what is empty is left out.
func (a *app) pairs(list [][2]string) error {
	w := newTable(a.stdout)
	for _, p := range list {
		if p[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", p[0], inert(p[1], 2000))
		}
	}
	return w.Flush()
}
