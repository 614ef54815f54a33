package runner

import (
	"os"
	"testing"
)

// TestWaits looks at a boot line that has not come, has come, and never will.
func TestWaits(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if waits(r) {
		t.Error("nothing was written")
	}
	if _, err := w.WriteString("line\n"); err != nil || !waits(r) {
		t.Errorf("a line is not seen: %v", err)
	}
	if _, err := r.Read(make([]byte, 5)); err != nil || waits(r) {
		t.Errorf("a line that was read is seen: %v", err)
	}
	if err := w.Close(); err != nil || !waits(r) {
		t.Errorf("the end is not seen: %v", err)
	}
}

// TestRehearse makes sure that what is rehearsed is what is done: a line that readBoot would not take would be none.
func TestRehearse(t *testing.T) {
	if err := rehearse(); err != nil {
		t.Error(err)
	}
}
