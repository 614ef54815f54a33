package vm

import (
	"testing"
	"time"
)

func TestTryKVM(t *testing.T) {
	began := time.Now()
	err := TryKVM(t.Context())
	t.Logf("%v after %v", err, time.Since(began))
}
