package limit

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// limiter is what both are.
type limiter interface {
	Allow(ctx context.Context, key string, limit int, per time.Duration) (bool, time.Duration, error)
}

// clock is a time that the test moves.
type clock struct{ micros atomic.Int64 }

func (c *clock) now() time.Time          { return time.UnixMicro(c.micros.Load()).UTC() }
func (c *clock) advance(d time.Duration) { c.micros.Add(d.Microseconds()) }

func newClock() *clock {
	c := &clock{}
	c.micros.Store(time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC).UnixMicro())
	return c
}

func TestMemory(t *testing.T) {
	suite(t, func(c *clock) limiter { return NewMemory(c.now, 0) })
}

func TestRedis(t *testing.T) {
	url := startRedis(t)
	suite(t, func(c *clock) limiter {
		r := openRedis(t, url)
		r.now = c.now
		return r
	})
	t.Run("own clock", func(t *testing.T) {
		r := openRedis(t, url)
		for i := range 2 {
			if ok, _, err := r.Allow(t.Context(), "own", 2, time.Hour); !ok || err != nil {
				t.Errorf("attempt %d: %v, %v", i, ok, err)
			}
		}
		if ok, retry, err := r.Allow(t.Context(), "own", 2, time.Hour); ok || err != nil || retry > time.Hour || retry < time.Hour-time.Minute {
			t.Errorf("%v, retry after %v, %v", ok, retry, err)
		}
		left, err := r.client.Keys(t.Context(), "*").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range left {
			if ttl := r.client.PTTL(t.Context(), key).Val(); ttl <= 0 {
				t.Errorf("%s stays for ever", key)
			}
		}
	})
}

// suite is the contract.
func suite(t *testing.T, open func(*clock) limiter) {
	type attempt struct {
		after time.Duration // since the attempt before
		ok    bool
		retry time.Duration
	}
	for _, c := range []struct {
		name     string
		limit    int
		attempts []attempt
	}{
		{"fill and wait", 2, []attempt{{0, true, 0}, {0, true, 0}, {0, false, time.Minute}, {time.Minute - time.Microsecond, false, time.Microsecond}, {time.Microsecond, true, 0}, {0, true, 0}, {0, false, time.Minute}}},
		{"slides", 2, []attempt{{0, true, 0}, {30 * time.Second, true, 0}, {29 * time.Second, false, time.Second}, {time.Second, true, 0}, {0, false, 30 * time.Second}, {30 * time.Second, true, 0}}},
		{"refused attempts do not count", 1, []attempt{{0, true, 0}, {50 * time.Second, false, 10 * time.Second}, {5 * time.Second, false, 5 * time.Second}, {5 * time.Second, true, 0}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock := newClock()
			l := open(clock)
			for i, a := range c.attempts {
				clock.advance(a.after)
				if ok, retry, err := l.Allow(t.Context(), c.name, c.limit, time.Minute); ok != a.ok || retry != a.retry || err != nil {
					t.Errorf("attempt %d: %v, retry after %v, %v; want %v, %v", i, ok, retry, err, a.ok, a.retry)
				}
			}
			if ok, _, err := l.Allow(t.Context(), c.name+" of another", c.limit, time.Minute); !ok || err != nil {
				t.Errorf("another key: %v, %v", ok, err)
			}
		})
	}
	t.Run("a lower limit later", func(t *testing.T) {
		clock := newClock()
		l := open(clock)
		for range 5 {
			if ok, _, err := l.Allow(t.Context(), "lower", 5, time.Minute); !ok || err != nil {
				t.Fatal(ok, err)
			}
			clock.advance(time.Second)
		}
		// Two may be in the window: the fourth must leave it.
		if ok, retry, err := l.Allow(t.Context(), "lower", 2, time.Minute); ok || retry != 58*time.Second || err != nil {
			t.Errorf("%v, %v, %v", ok, retry, err)
		}
	})
	t.Run("at once", func(t *testing.T) {
		l := open(newClock())
		var allowed atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				ok, _, err := l.Allow(t.Context(), "at once", 7, time.Minute)
				if err != nil {
					t.Error(err)
				} else if ok {
					allowed.Add(1)
				}
			})
		}
		wg.Wait()
		if allowed.Load() != 7 {
			t.Errorf("%d of 7 were allowed", allowed.Load())
		}
	})
	t.Run("senseless limits", func(t *testing.T) {
		l := open(newClock())
		for _, c := range []struct {
			limit int
			per   time.Duration
		}{{0, time.Minute}, {-1, time.Minute}, {MaxLimit + 1, time.Minute}, {1, 0}, {1, -time.Minute}} {
			if ok, _, err := l.Allow(t.Context(), "x", c.limit, c.per); ok || fault.KindOf(err) != fault.Internal || err == nil {
				t.Errorf("%d in %v: %v, %v", c.limit, c.per, ok, err)
			}
		}
	})
}

func TestMemoryBounded(t *testing.T) {
	clock := newClock()
	m := NewMemory(clock.now, 100)
	for i := range 10_000 {
		if ok, _, err := m.Allow(t.Context(), fmt.Sprint("key ", i), 1, time.Minute); !ok || err != nil {
			t.Fatal(i, ok, err)
		}
		// A key in use is not forgotten under a flood of others.
		if ok, _, err := m.Allow(t.Context(), "attacked", 1, time.Minute); ok != (i == 0) || err != nil {
			t.Fatal(i, ok, err)
		}
	}
	if len(m.keys) != 100 || m.used.Len() != 100 {
		t.Errorf("%d keys, %d in the list", len(m.keys), m.used.Len())
	}
}

func TestRedisGone(t *testing.T) {
	for name, url := range map[string]string{
		"no socket": "unix://" + filepath.Join(t.TempDir(), "none.sock"),
		"silent":    "unix://" + silent(t),
	} {
		r := openRedis(t, url)
		start := time.Now()
		if ok, _, err := r.Allow(t.Context(), "x", 1, time.Minute); ok || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
		if took := time.Since(start); took > 2*redisPatience {
			t.Errorf("%s: told after %v", name, took)
		}
		if err := r.Ping(t.Context()); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: ping: %v", name, err)
		}
	}
	if _, err := NewRedis("http://example.com"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("not Redis: %v", err)
	}
}

// silent is a server that takes connections and says nothing.
func silent(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "silent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return path
}

func openRedis(t *testing.T, url string) *Redis {
	t.Helper()
	r, err := NewRedis(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// startRedis runs a real server on a Unix socket for the length of the test.
func startRedis(t *testing.T) string {
	t.Helper()
	testenv.Need(t, "tool:redis-server")
	dir, err := os.MkdirTemp("", "redis") // short: the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "r.sock")
	cmd := exec.Command("redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", dir, "--daemonize", "no")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has nothing to save
		_ = cmd.Wait()         // says that it was killed
		_ = os.RemoveAll(dir)
	})
	r := openRedis(t, "unix://"+socket)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := r.Ping(t.Context())
		if err == nil {
			return "unix://" + socket
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
