package server

import "testing"

// Only what may be of any size is under no deadline as a whole.
func TestUnbounded(t *testing.T) {
	for path, want := range map[string]bool{
		"/audit/export": true, "/sandboxes/x1/download": true, "/": false, "/audit": false, "/sandboxes/x1": false, "/sandboxes/x1/files": false, "/sandboxes//download": false,
		"/sandboxes/download": false, "/sandboxes/a/b/download": false, "/agents/x1/download": false, "/audit/export/": false,
	} {
		if got := unbounded(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
