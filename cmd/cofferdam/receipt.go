package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/receipt"
	"github.com/cofferdam/cofferdam/internal/sandbox"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// newReceiptCommand is "cofferdam receipt".
func (a *app) newReceiptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "receipt [RUN]",
		Short: "Show what became of all that a run had",
		Long: `Show, item by item, what was destroyed at the end of a run, how that was looked for, and with what result: gone, remains, not observed, or kept on purpose.
Only what was looked for is said to be gone. The same is in the audit log, as sandbox.erased.

Exit status: 0; 1 if something remains or there is no receipt.`,
		Example: `  cofferdam receipt
  cofferdam receipt k3x --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text := "last"
			if len(args) > 0 {
				text = args[0]
			}
			r, err := a.findReceipt(text)
			err = show(a, cmd, r, err, a.printReceipt)
			if err == nil && len(receipt.Problems(r.Items)) > 0 {
				return status(exitProblem)
			}
			return err
		},
	}
	jsonFlag(cmd)
	return cmd
}

// runReceipt is a run's receipt as it is printed for programs.
type runReceipt struct {
	Run   ident.Run      `json:"run"`
	How   string         `json:"how"`
	Items []receipt.Item `json:"items"`
}

// findReceipt looks in the run's record, and where that was deleted in the audit log.
func (a *app) findReceipt(text string) (runReceipt, error) {
	store, err := sandbox.OpenStore(a.state)
	if err != nil {
		return runReceipt{}, err
	}
	record, err := store.Resolve(text)
	if run, wrong := ident.ParseRun(text); wrong == nil && fault.KindOf(err) == fault.NotFound {
		return a.loggedReceipt(run)
	}
	switch {
	case err != nil:
		return runReceipt{}, err
	case record.State != sandbox.Ended && store.IsLive(record.Run):
		return runReceipt{}, fault.New(fault.Conflict, "run %s has not ended", record.Run).WithHint("wait for it, or look at what it does: cofferdam audit %s", record.Run)
	case len(record.Receipt) == 0:
		return runReceipt{}, fault.New(fault.NotFound, "nobody has said what became of run %s", record.Run).WithHint("clean up after it: cofferdam gc; what it did is on record: cofferdam audit %s", record.Run)
	}
	return runReceipt{Run: record.Run, How: record.How, Items: record.Receipt}, nil
}

func (a *app) loggedReceipt(run ident.Run) (runReceipt, error) {
	found := runReceipt{Run: run}
	for e, err := range audit.Read(a.auditDir(), audit.Filter{Run: run, Kinds: []audit.Kind{audit.SandboxErased}}) {
		if err != nil {
			return found, err
		}
		found.How, found.Items = e.Detail, e.Erased
	}
	if len(found.Items) == 0 {
		return found, fault.New(fault.NotFound, "no receipt of a run %s", run).WithHint("list runs with: cofferdam ps --all")
	}
	return found, nil
}

func (a *app) printReceipt(r runReceipt) error {
	fmt.Fprintf(a.stdout, "run %s: %s\n", r.Run, inert(r.How, 200))
	w := newTable(a.stdout)
	fmt.Fprintln(w, "WHAT\tRESULT\tAT\tHOW")
	for _, i := range r.Items {
		how := i.How
		if i.Problem != "" {
			how += ": " + i.Problem
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", inert(i.What, 60), inert(string(i.Checked), 20), i.At.Local().Format(time.DateTime), inert(how, 400))
	}
	return w.Flush()
}

// receipt is what became of all that the sandbox had: what the supervisor looked for, and what is this process's own to say.
func (e *execution) receipt() []receipt.Item {
	items := append([]receipt.Item{}, e.ended.Receipt...)
	items = append(items, receipt.Unobserved("network namespace", "the gateway has closed its sockets, which were the last hold of it; the kernel takes it away by itself and does not tell when"))
	items = append(items, receipt.Unobserved("tokens and keys", "the runner's token was worthless after its one use; the gateway's authority and what was lent were in the memory of this process only, which ends"))
	if e.root.held != nil {
		items = append(items, receipt.Left("image", e.root.image.Digest+" stays in the store, as it was: it could not be written; this run's hold on it ends with this process"))
	}
	switch {
	case e.ended.CollectError != "":
		items = append(items, receipt.Unobserved("changes of the folder", "could not be collected, and went with scratch: "+e.ended.CollectError))
	case e.ended.Changed > 0:
		items = append(items, receipt.Left("changes of the folder", e.store.Changes(e.id)+", until they are dropped: cofferdam drop "+e.id.String()))
	}
	if dir := e.keptAt(); dir != "" {
		items = append(items, receipt.Left("snapshot", dir+", with the machine's memory and disks, until it is removed: cofferdam snapshot rm "+string(e.keepsake.name)))
	}
	return append(items, receipt.Left("record of the run", e.store.Dir(e.id)+", and in the audit log"))
}

// remains looks for runs of which something was left over.
func (a *app) remains() call.Feature {
	f := call.Feature{Name: "earlier runs", OK: true, Detail: "nothing is on record as left over"}
	store, err := sandbox.OpenStore(a.state)
	var records []sandbox.Record
	if err == nil {
		records, err = store.List()
	}
	if err != nil {
		f.OK, f.Detail = false, err.Error()
		return f
	}
	for _, r := range records {
		if problems := receipt.Problems(r.Receipt); len(problems) > 0 {
			f.OK, f.Detail = false, "run "+r.Run.String()+": "+inert(problems[0], 200)
			f.Remedy = "see cofferdam receipt " + r.Run.String() + "; once it is removed by hand, delete the record: cofferdam gc --older-than 1s"
		}
	}
	return f
}
