package container

import (
	"os"
	"strings"
	"testing"
)

// TestRemains looks for a process that is there, so that finding none means something.
func TestRemains(t *testing.T) {
	own, err := homeOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Container{home: own}).Remains(); err == nil || !strings.Contains(err.Error(), "still in") {
		t.Errorf("in namespaces with processes: %v", err)
	}
	if err := (&Container{home: home{"mnt": "mnt:[1]"}}).Remains(); err != nil {
		t.Errorf("in a namespace that nobody is in: %v", err)
	}
	if err := (&Container{}).Remains(); err == nil {
		t.Error("namespaces that are not known were found empty")
	}
}
