package store_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/store"
)

// victimVariable has the test program be a process that writes until it is killed.
const victimVariable = "COFFERDAM_STORE_VICTIM"

func victim(dsn string) int {
	ctx := context.Background()
	db, err := store.Open(ctx, dsn)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		o, err := things.Insert(ctx, db, store.Object[thing]{Tenant: "t", Data: thing{Text: "acknowledged"}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(o.ID)
	}
}

func TestKilled(t *testing.T) {
	for _, dialect := range []string{"sqlite", "postgres"} {
		t.Run(dialect, func(t *testing.T) {
			dsn := address(t, dialect)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), victimVariable+"="+dsn)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var acknowledged []string
			lines := bufio.NewScanner(out)
			begun := time.Now()
			for lines.Scan() {
				if acknowledged = append(acknowledged, lines.Text()); len(acknowledged) == 300 || time.Since(begun) > 20*time.Second {
					if err := cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
				}
			}
			_ = cmd.Wait() // killed, as wanted
			if len(acknowledged) < 100 {
				t.Fatalf("%d acknowledged", len(acknowledged))
			}
			db := openAt(t, dsn)
			for _, id := range acknowledged {
				if len(id) < 16 { // the last line may be cut
					continue
				}
				if _, err := things.Get(t.Context(), db, "t", id); err != nil {
					t.Errorf("%s was acknowledged: %v", id, err)
				}
			}
			if _, err := things.Insert(t.Context(), db, store.Object[thing]{Tenant: "t"}); err != nil {
				t.Error(err)
			}
		})
	}
}
