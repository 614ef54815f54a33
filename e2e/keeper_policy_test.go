package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/ident"
	"github.com/cofferdam/cofferdam/internal/keeper"
	"github.com/cofferdam/cofferdam/internal/testenv"
)

// echo is a server outside that says "hello" and then what it is told.
func echo(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(t.Context(), func() { _ = conn.Close() })
				defer stop()
				_, _ = io.WriteString(conn, "hello\n")
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

// network begins a policy under which names may be this machine's.
const network = "version: 1\negress:\n  networks: [127.0.0.0/8]\n"

// rule allows any bytes to a host.
func rule(host string, port int) string {
	return fmt.Sprintf("    - {name: ours, hosts: [%s], ports: [%d], protocol: tcp}\n", host, port)
}

// dialLine is a shell line that connects once, and says what it is told first.
func dialLine(host string, port int) string {
	return fmt.Sprintf(`bash -c 'exec 3<>/dev/tcp/%s/%d && printf "\1\n" >&3 && head -n 1 <&3' 2>/dev/null || echo refused`, host, port)
}

func TestKeeperPolicy(t *testing.T) {
	testenv.Need(t, "tool:bash")
	asEachUser(t, func(t *testing.T, h *house) {
		port := echo(t)
		open, closed := network+"  rules:\n"+rule("up.example.com", port), network
		k := h.keep(keeper.Spec{Policy: closed, Resolve: []string{"up.example.com=127.0.0.1"}})
		if s := k.sh(dialLine("up.example.com", port)); s.out != "refused\n" {
			t.Fatalf("without a rule: %+v", s)
		}
		if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: open}); err != nil {
			t.Fatal(err)
		}
		if s := k.sh(dialLine("up.example.com", port)); s.out != "hello\n" {
			t.Fatalf("with a rule: %+v", s)
		}
		p, err := k.client.Exec(t.Context(), keeper.Exec{Command: []string{"bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/up.example.com/%d; cat <&3; echo over", port)}, NoStdin: true})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		first := make([]byte, 6)
		if _, err := io.ReadFull(p.Stdout(), first); err != nil || string(first) != "hello\n" {
			t.Fatalf("%q, %v", first, err)
		}
		began := time.Now()
		if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: closed}); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(p.Stdout())
		if took := time.Since(began); string(rest) != "over\n" || took > time.Second {
			t.Errorf("an open connection that is denied said %q after %v", rest, took)
		}
		if s := k.sh(dialLine("up.example.com", port)); s.out != "refused\n" {
			t.Errorf("denied again: %+v", s)
		}
		for _, test := range []struct {
			name, policy string
			kind         fault.Kind
		}{
			{"no policy", "nonsense: 1\n", fault.Invalid},
			{"mounts of the host", "version: 1\nmounts: [{source: /etc, target: /mnt/x}]\n", fault.Invalid},
			{"a credential that is not open", "version: 1\ncredentials: [{use: main, env: T, hosts: [a.example.com]}]\n", fault.Conflict},
			{"git", "version: 1\ngit: {upstreams: [{name: hub, url: https://git.example.com}]}\n", fault.Conflict},
			{"other limits", "version: 1\nresources: {pids: 17}\n", fault.Conflict},
		} {
			if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: test.policy}); fault.KindOf(err) != test.kind {
				t.Errorf("%s: %v", test.name, err)
			}
		}
		// A raw address and a rule that judges requests can come later too.
		if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: network + fmt.Sprintf("  rules:\n    - {networks: [192.0.2.7/32], ports: [%d], protocol: tcp}\n    - {hosts: [up.example.com], methods: [GET]}\n", port)}); err != nil {
			t.Error(err)
		}
		status, err := k.client.Status(t.Context())
		if err != nil || status.Allowed == 0 || status.Denied == 0 || status.Connections == 0 {
			t.Errorf("status %+v, %v", status, err)
		}
	})
}

func TestKeeperOnce(t *testing.T) {
	testenv.Need(t, "tool:bash")
	asEachUser(t, func(t *testing.T, h *house) {
		port := echo(t)
		k := h.keep(keeper.Spec{Policy: network, Resolve: []string{"up.example.com=127.0.0.1"}})
		used := make(chan string, 10)
		ctx, cancel := context.WithCancel(t.Context())
		var listening sync.WaitGroup
		listening.Go(func() {
			_ = k.client.Events(ctx, func(e keeper.Event) {
				if e.Type == "used" {
					used <- e.ID
				}
			})
		})
		defer listening.Wait()
		defer cancel()
		once := keeper.OnceRule{ID: "r-1", Rule: fmt.Sprintf("- hosts: [up.example.com]\n  ports: [%d]\n  protocol: tcp\n", port)}
		if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: network, Once: []keeper.OnceRule{once}}); err != nil {
			t.Fatal(err)
		}
		s := k.sh("for i in 1 2 3 4 5 6 7 8 9 10; do " + dialLine("up.example.com", port) + " & done; wait")
		if hellos := strings.Count(s.out, "hello"); hellos != 1 || strings.Count(s.out, "refused") != 9 {
			t.Errorf("a rule for one crossing let %d through: %+v", hellos, s)
		}
		select {
		case id := <-used:
			if id != "r-1" {
				t.Errorf("used: %q", id)
			}
		case <-time.After(5 * time.Second):
			t.Error("nobody told that the rule was used")
		}
		if s := k.sh(dialLine("up.example.com", port)); s.out != "refused\n" {
			t.Errorf("once more: %+v", s)
		}
		// A service that has not heard of it sends the rule again.
		if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: network, Once: []keeper.OnceRule{once}}); err != nil {
			t.Fatal(err)
		}
		if s := k.sh(dialLine("up.example.com", port)); s.out != "refused\n" {
			t.Errorf("a rule that was used is sent again: %+v", s)
		}
		allowed := 0
		for _, e := range k.records() {
			if e.Kind == "crossing.decided" && e.Verdict == "allow" && e.Protocol == "tcp" && e.Rule == "approved:r-1" {
				allowed++
			}
		}
		if allowed != 1 {
			t.Errorf("%d crossings on record by the rule", allowed)
		}
		for _, bad := range []keeper.OnceRule{{ID: "a b", Rule: once.Rule}, {ID: "x", Rule: "- nonsense: 1"}, {ID: "x", Rule: "- {hosts: [a.example.com], verdict: deny}"}} {
			if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: network, Once: []keeper.OnceRule{bad}}); fault.KindOf(err) != fault.Invalid {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		// What a rule denies, none for one crossing opens.
		deny := network + "  rules:\n    - {name: never, hosts: [up.example.com], verdict: deny}\n"
		if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: deny, Once: []keeper.OnceRule{once}}); err != nil {
			t.Fatal(err)
		}
		if s := k.sh(dialLine("up.example.com", port)); s.out != "refused\n" {
			t.Errorf("against a rule: %+v", s)
		}
	})
}

// What holds until a time ends then, also where nobody tells the keeper.
func TestKeeperUntil(t *testing.T) {
	testenv.Need(t, "tool:bash")
	asEachUser(t, func(t *testing.T, h *house) {
		port := echo(t)
		open, other := network+"  rules:\n"+rule("up.example.com", port), network+"  rules:\n"+rule("down.example.com", port)
		end := time.Now().Add(8 * time.Second)
		k := h.keep(keeper.Spec{
			Policy: open, Resolve: []string{"up.example.com=127.0.0.1", "down.example.com=127.0.0.1", "once.example.com=127.0.0.1"},
			Then: []keeper.Later{{At: end, Policy: other}, {At: end.Add(2 * time.Second), Policy: network}},
		})
		status, err := k.client.Status(t.Context())
		if err != nil || !status.Next.Equal(end) {
			t.Fatalf("%+v, %v", status, err)
		}
		tunnel := func() *keeper.Process {
			t.Helper()
			p, err := k.client.Exec(t.Context(), keeper.Exec{Command: []string{"bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/up.example.com/%d; cat <&3; echo over", port)}, NoStdin: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(p.Stdout(), make([]byte, len("hello\n"))); err != nil {
				t.Fatal(err)
			}
			return p
		}
		cutAt := func(p *keeper.Process, end time.Time) {
			t.Helper()
			defer p.Close()
			rest, _ := io.ReadAll(p.Stdout())
			if late := time.Since(end); string(rest) != "over\n" || late < 0 || late > time.Second {
				t.Errorf("a connection that was allowed until then said %q, %v after", rest, late)
			}
		}
		// A rule for one crossing outlives the change, and what stays is what was said with the document.
		once := keeper.OnceRule{ID: "r-1", Rule: fmt.Sprintf("- hosts: [once.example.com]\n  ports: [%d]\n  protocol: tcp\n", port)}
		if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Keep: true, Once: []keeper.OnceRule{once}}); err != nil {
			t.Fatal(err)
		}
		cutAt(tunnel(), end)
		if s := k.sh(dialLine("up.example.com", port) + "; " + dialLine("down.example.com", port)); s.out != "refused\nhello\n" {
			t.Errorf("after the first end: %+v", s)
		}
		time.Sleep(time.Until(end.Add(2500 * time.Millisecond)))
		if s := k.sh(dialLine("down.example.com", port) + "; " + dialLine("once.example.com", port) + "; " + dialLine("once.example.com", port)); s.out != "refused\nhello\nrefused\n" {
			t.Errorf("after the last end: %+v", s)
		}
		// Likewise what comes with a new policy, and a newer one's takes its place.
		soon := time.Now().Add(1500 * time.Millisecond)
		for _, p := range []keeper.NewPolicy{
			{Policy: other, Then: []keeper.Later{{At: soon, Policy: open}}},
			{Policy: open, Then: []keeper.Later{{At: soon.Add(-time.Hour), Policy: open}, {At: soon, Policy: network}}},
		} {
			if err := k.client.SetPolicy(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		cutAt(tunnel(), soon)
		if status, err := k.client.Status(t.Context()); err != nil || !status.Next.IsZero() {
			t.Errorf("%+v, %v", status, err)
		}
		for name, bad := range map[string]keeper.NewPolicy{
			"times that go down": {Policy: network, Then: []keeper.Later{{At: soon, Policy: network}, {At: soon, Policy: network}}},
			"no time":            {Policy: network, Then: []keeper.Later{{Policy: network}}},
			"no policy later":    {Policy: network, Then: []keeper.Later{{At: soon, Policy: "nonsense: 1"}}},
			"too many":           {Policy: network, Then: make([]keeper.Later, keeper.MaxLater+1)},
			"keep, and another":  {Policy: network, Keep: true},
		} {
			if err := k.client.SetPolicy(t.Context(), bad); fault.KindOf(err) != fault.Invalid {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// What the service takes for the runner's own program is that, although root inside can put another at its path.
func TestKeeperSelf(t *testing.T) {
	asEachUser(t, func(t *testing.T, h *house) {
		k := h.keep(keeper.Spec{})
		const lie = `mkdir /tmp/x && printf '#!/bin/sh\necho lies\n' >/tmp/x/runner && chmod 755 /tmp/x/runner && mv /run/cofferdam /run/aside && mv /tmp/x /run/cofferdam && /run/cofferdam/runner`
		if s := k.sh(lie); s.out != "lies\n" {
			t.Logf("the runner's path cannot be taken: %+v", s)
		}
		if s := k.sh("echo hidden >/tmp/seen"); s.code != 0 {
			t.Fatalf("%+v", s)
		}
		p, err := k.client.Exec(t.Context(), keeper.Exec{Command: []string{"/run/cofferdam/runner", "file", "read", "/tmp/seen"}, Self: true, Dir: "/", NoStdin: true})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		out, _ := io.ReadAll(p.Stdout())
		complaints, _ := io.ReadAll(p.Stderr())
		if exit, err := p.Wait(); err != nil || exit.Code != 0 || string(out) != "hidden\n" {
			t.Errorf("%q, %q, %+v, %v", out, complaints, exit, err)
		}
	})
}

func TestKeeperAsk(t *testing.T) {
	testenv.Need(t, "tool:bash")
	asEachUser(t, func(t *testing.T, h *house) {
		port := echo(t)
		asks := network + "  default: ask\n"
		k := h.keep(keeper.Spec{Policy: asks, Resolve: []string{"up.example.com=127.0.0.1", "down.example.com=127.0.0.1", "later.example.com=127.0.0.1"}})
		events := make(chan keeper.Event, 100)
		ctx, cancel := context.WithCancel(t.Context())
		var listening sync.WaitGroup
		listening.Go(func() { _ = k.client.Events(ctx, func(e keeper.Event) { events <- e }) })
		defer listening.Wait()
		defer cancel()
		next := func(kind string) keeper.Event {
			t.Helper()
			select {
			case e := <-events:
				if e.Type != kind {
					t.Fatalf("got %+v, want %s", e, kind)
				}
				return e
			case <-time.After(10 * time.Second):
				t.Fatalf("no event %s", kind)
			}
			return keeper.Event{}
		}
		try := func(host string) <-chan said {
			done := make(chan said, 1)
			go func() { done <- k.sh(dialLine(host, port)) }()
			return done
		}
		done := try("up.example.com")
		e := next("ask")
		if e.Ask.Host != "up.example.com" || int(e.Ask.Port) != port || e.Ask.Process == "" || e.Ask.Rule != "default" || e.Ask.Deadline.IsZero() {
			t.Errorf("the question is %+v", e.Ask)
		}
		if status, err := k.client.Status(t.Context()); err != nil || len(status.Asks) != 1 || status.Asks[0].ID != e.Ask.ID {
			t.Errorf("status %+v, %v", status, err)
		}
		if err := k.client.Answer(t.Context(), e.Ask.ID, keeper.Answer{Allow: true, Rule: "approved:a1", Reason: "allowed by user u1", Lasting: true}); err != nil {
			t.Fatal(err)
		}
		if s := <-done; s.out != "hello\n" {
			t.Errorf("allowed: %+v", s)
		}
		next("withdrawn")
		if err := k.client.Answer(t.Context(), e.Ask.ID, keeper.Answer{}); fault.KindOf(err) != fault.NotFound {
			t.Errorf("a second answer: %v", err)
		}
		if s := <-try("up.example.com"); s.out != "hello\n" {
			t.Errorf("allowed for good: %+v", s)
		}
		done = try("down.example.com")
		if err := k.client.Answer(t.Context(), next("ask").Ask.ID, keeper.Answer{Rule: "approved:a2", Reason: "refused by user u1"}); err != nil {
			t.Fatal(err)
		}
		if s := <-done; s.out != "refused\n" {
			t.Errorf("refused: %+v", s)
		}
		next("withdrawn")
		// A policy that need not ask any more answers what waits.
		done = try("later.example.com")
		next("ask")
		if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: asks + "  rules:\n" + rule("later.example.com", port)}); err != nil {
			t.Fatal(err)
		}
		if s := <-done; s.out != "hello\n" {
			t.Errorf("allowed by the new policy: %+v", s)
		}
		var allowed, refused bool
		for _, e := range k.records() {
			allowed = allowed || e.Host == "up.example.com" && e.Verdict == "allow" && e.Rule == "approved:a1" && e.Reason == "allowed by user u1"
			refused = refused || e.Host == "down.example.com" && e.Verdict == "deny" && e.Rule == "approved:a2"
		}
		if !allowed || !refused {
			t.Errorf("answers on record: allowed %v, refused %v", allowed, refused)
		}
	})
}

// A program inside that fills the control address, and all connections that the sandbox may have, keeps no command from being started.
func TestKeeperFlood(t *testing.T) {
	testenv.Need(t, "tool:bash")
	asEachUser(t, func(t *testing.T, h *house) {
		port := echo(t)
		k := h.keep(keeper.Spec{Policy: network + "  rules:\n" + rule("up.example.com", port), Resolve: []string{"up.example.com=127.0.0.1"}})
		full, err := k.client.Exec(t.Context(), keeper.Exec{Command: []string{"bash", "-c", fmt.Sprintf(
			`for i in $(seq 10 309); do eval "exec $i<>/dev/tcp/up.example.com/%d" || break; done 2>/dev/null; echo on; sleep 100`, port)}, NoStdin: true})
		if err != nil {
			t.Fatal(err)
		}
		defer full.Close()
		if _, err := io.ReadFull(full.Stdout(), make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		if s := k.sh("echo through; " + dialLine("up.example.com", port)); s.out != "through\nrefused\n" {
			t.Fatalf("with all connections in use: %+v", s)
		}
		flood, err := k.client.Exec(t.Context(), keeper.Exec{Command: []string{"bash", "-c", `
			for n in 1 2 3 4; do (while :; do
				for i in $(seq 10 209); do eval "exec $i<>/dev/tcp/198.18.0.1/1" && [ $((i % 3)) = 0 ] && printf '\1\0\0\0\0\103\0\2\100%064d' $i >&$i; done
				for i in $(seq 10 209); do eval "exec $i>&-"; done
			done) 2>/dev/null & done; sleep 1; echo on; wait`}, NoStdin: true})
		if err != nil {
			t.Fatal(err)
		}
		defer flood.Close()
		if _, err := io.ReadFull(flood.Stdout(), make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			began := time.Now()
			if s := k.sh("echo through"); s.out != "through\n" {
				t.Fatalf("under a flood: %+v", s)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("a command took %v to run", took)
			}
		}
		if _, ok := denied(plain(k), event{Rule: "gateway-closed"}); !ok {
			t.Error("strange calls to the control address are not on record")
		}
	})
}

// plain are the records of a run as denied wants them.
func plain(k *kept) (events []event) {
	for _, e := range k.records() {
		events = append(events, e.event)
	}
	return events
}

func TestKeeperMain(t *testing.T) {
	asEachUser(t, func(t *testing.T, h *house) {
		// More than both files of the log hold: each line says its own offset.
		const line, lines = 100, 110000
		k := h.keep(keeper.Spec{Command: []string{"sh", "-c", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); done | awk '{printf "%%0%dd\n", $1*%d}'; echo done; read x; sleep 0.5; exit 9`, lines, line-1, line)}})
		var offset, skipped int64
		began, total := time.Now(), 0
		for {
			data, next, lost, err := keeper.Output(h.state, k.run, offset, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			at := offset + lost
			if next != at+int64(len(data)) {
				t.Fatalf("offset %d, lost %d, %d bytes, next %d", offset, lost, len(data), next)
			}
			for len(data) > 0 && at < line*lines { // the digits at at are those of its line
				start := at / line * line
				want := fmt.Sprintf("%0*d\n", line-1, start)[at-start:]
				n := min(len(want), len(data))
				if string(data[:n]) != want[:n] {
					t.Fatalf("at %d: %q, want %q", at, data[:n], want[:n])
				}
				data, at = data[n:], at+int64(n)
			}
			total += int(next - offset - lost)
			offset, skipped = next, skipped+lost
			if strings.HasSuffix(string(data), "done\n") {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("no end after %d bytes", offset)
			}
			time.Sleep(time.Millisecond)
		}
		if want := int64(line*lines + 5); offset != want || int64(total)+skipped != want {
			t.Errorf("%d bytes, %d of them lost, want %d", offset, skipped, want)
		}
		data, next, lost, err := keeper.Output(h.state, k.run, 0, 100)
		if err != nil || lost == 0 || next != lost+100 || len(data) != 100 {
			t.Errorf("from the beginning: %d bytes, next %d, lost %d, %v", len(data), next, lost, err)
		}
		if how, code := k.record(); how != "exit 9" || code != 9 {
			t.Errorf("ended by %q with %d", how, code)
		}
		if data, _, _, err := keeper.Output(h.state, k.run, offset-5, 100); err != nil || string(data) != "done\n" {
			t.Errorf("after the end: %q, %v", data, err)
		}
	})
}

func TestKeeperDeadline(t *testing.T) {
	asEachUser(t, func(t *testing.T, h *house) {
		k := h.keep(keeper.Spec{Deadline: time.Now().Add(time.Hour)})
		at := time.Now().Add(1500 * time.Millisecond)
		if err := k.client.SetDeadline(t.Context(), keeper.NewDeadline{Deadline: at}); err != nil {
			t.Fatal(err)
		}
		if status, err := k.client.Status(t.Context()); err != nil || !status.Deadline.Equal(at.Round(0)) {
			t.Errorf("status %+v, %v", status, err)
		}
		if how, code := k.record(); how != "timeout: the deadline has come" || code != 124 || time.Now().Before(at) {
			t.Errorf("ended by %q with %d", how, code)
		}
	})
}

// launchOnly has this test's process do nothing but launch a sandbox, and wait to be killed.
const launchOnly = "COFFERDAM_TEST_LAUNCH"

// The sandbox outlives who launched it, and whoever comes later finds it. If the keeper dies, so does the sandbox.
func TestKeeperOutlives(t *testing.T) {
	if text := os.Getenv(launchOnly); text != "" {
		state, run, _ := strings.Cut(text, "|")
		l := &keeper.Launcher{Program: filepath.Join(testenv.Programs(t), "cofferdam"), State: state}
		ready, err := l.Launch(t.Context(), keeper.Spec{Run: ident.Run(run), Tenant: "t1", Agent: "a1", Policy: "version: 1\n"})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("keeper", ready.PID)
		select {}
	}
	asEachUser(t, func(t *testing.T, h *house) {
		run := ident.NewRun()
		own, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		launcher := exec.Command(own, "-test.run=^TestKeeperOutlives$")
		launcher.Env = append(os.Environ(), launchOnly+"="+h.state+"|"+run.String(), "COFFERDAM_BIN="+h.bin)
		out, err := launcher.StdoutPipe()
		if err == nil {
			err = launcher.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		k := &kept{house: h, run: run}
		if _, err := fmt.Fscanf(out, "keeper %d\n", &k.ready.PID); err != nil {
			t.Fatal(err)
		}
		_ = launcher.Process.Kill()
		_ = launcher.Wait() // it was killed
		if k.client, err = keeper.Dial(t.Context(), h.state, run); err != nil {
			t.Fatal(err)
		}
		if s := k.sh("echo alive"); s.out != "alive\n" {
			t.Errorf("%+v", s)
		}
		if err := syscall.Kill(k.ready.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		k.gone(ctx)
		if _, err := k.client.Status(ctx); fault.KindOf(err) != fault.NotFound {
			t.Errorf("status of the dead: %v", err)
		}
		if r := h.do("gc"); r.code != 0 {
			t.Errorf("gc: %s", r.stderr)
		}
		if how, _ := k.record(); !strings.HasPrefix(how, "killed") {
			t.Errorf("ended by %q", how)
		}
	})
}

func TestKeeperRefuses(t *testing.T) {
	asEachUser(t, func(t *testing.T, h *house) {
		for _, test := range []struct {
			name string
			spec keeper.Spec
			kind fault.Kind
		}{
			{"mounts of the host", keeper.Spec{Policy: "version: 1\nmounts: [{source: /etc, target: /mnt/x}]\n"}, fault.Invalid},
			{"credentials without a store", keeper.Spec{Policy: "version: 1\ncredentials: [{use: main, env: T, hosts: [a.example.com]}]\n"}, fault.Invalid},
			{"no policy", keeper.Spec{}, fault.Invalid},
			{"a level that is none", keeper.Spec{Policy: "version: 1\n", Isolation: "paper"}, fault.Invalid},
			{"a folder that is missing", keeper.Spec{Policy: "version: 1\n", Workspace: &keeper.Workspace{Dir: filepath.Join(h.home, "missing"), Path: "/work", Mode: "rw"}}, fault.Invalid},
		} {
			test.spec.Run = ident.NewRun()
			if _, err := h.launcher().Launch(t.Context(), test.spec); fault.KindOf(err) != test.kind || err == nil {
				t.Errorf("%s: %v", test.name, err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		run := ident.NewRun()
		if _, err := h.launcher().Launch(ctx, keeper.Spec{Run: run, Policy: "version: 1\n"}); err == nil {
			t.Error("launched although nobody waits")
		}
		if _, err := keeper.Dial(t.Context(), h.state, run); fault.KindOf(err) != fault.NotFound {
			t.Errorf("what was given up: %v", err)
		}
	})
}

func TestKeeperWorkspace(t *testing.T) {
	asEachUser(t, func(t *testing.T, h *house) {
		k := h.keep(keeper.Spec{Workspace: &keeper.Workspace{Dir: h.project, Path: "/work", Mode: "rw"}})
		if s := k.sh("pwd; echo made > file"); s.out != "/work\n" || s.code != 0 {
			t.Errorf("%+v", s)
		}
		if data, err := os.ReadFile(filepath.Join(h.project, "file")); err != nil || string(data) != "made\n" {
			t.Errorf("%q, %v", data, err)
		}
		// A folder that programs of the host may work in: there are no Unix sockets with names. One that nobody else has: there are, where all that is
		// seen of the host is seen through overlays, as root.
		const bind = `import socket; s = socket.socket(socket.AF_UNIX); s.bind("/work/sock"); s.listen(); c = socket.socket(socket.AF_UNIX); c.connect("/work/sock"); print("through")`
		if s := k.sh("python3 -c '" + bind + "'"); s.code == 0 {
			t.Errorf("a named socket in a folder of the host's: %+v", s)
		}
		dir := filepath.Join(h.home, "own")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		h.own(dir)
		own := h.keep(keeper.Spec{Workspace: &keeper.Workspace{Dir: dir, Path: "/work", Mode: "rw", Alone: true}})
		if s := own.sh("python3 -c '" + bind + "'"); h.as.uid == 0 && s.out != "through\n" {
			t.Errorf("a named socket in a folder of its own: %+v", s)
		}
	})
}

func TestKeeperCredentials(t *testing.T) {
	asEachUser(t, func(t *testing.T, h *house) {
		tenant := filepath.Join(h.state, "tenants", "t1")
		if err := os.MkdirAll(tenant, 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := h.command(t.Context(), "credential", "add", "main", "--host", "up.example.com")
		cmd.Env = append(cmd.Env, "COFFERDAM_STATE="+tenant)
		cmd.Stdin = strings.NewReader("secret-4711-0815-4711\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		lends := func(entries string) string {
			return "version: 1\negress: {rules: [{hosts: [up.example.com]}]}\ncredentials: [" + entries + "]\n"
		}
		entry := "{use: main, env: TOKEN, hosts: [up.example.com]}"
		if _, err := h.launcher().Launch(t.Context(), keeper.Spec{Run: ident.NewRun(), Policy: lends(entry), Secrets: filepath.Join(h.state, "tenants", "t2")}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("a credential of another tenant's: %v", err)
		}
		k := h.keep(keeper.Spec{Policy: lends(entry), Secrets: tenant})
		s := k.sh("echo $TOKEN; env")
		if token, _, _ := strings.Cut(s.out, "\n"); len(token) < 10 || strings.Contains(s.out, "secret-4711") {
			t.Errorf("inside: %s", s.out)
		}
		for _, test := range []struct {
			name, entries string
			kind          fault.Kind // Internal: none
		}{
			{"not lent any more", "", fault.Internal},
			{"lent again", entry, fault.Internal},
			{"for some requests", "{use: main, env: TOKEN, hosts: [up.example.com], methods: [GET]}", fault.Internal},
			{"in another variable", "{use: main, env: OTHER, hosts: [up.example.com]}", fault.Conflict},
			{"for a host that is not its own", "{use: main, env: TOKEN, hosts: [down.example.com]}", fault.Denied},
			{"another one", "{use: other, env: TOKEN, hosts: [up.example.com]}", fault.Conflict},
		} {
			if err := k.client.SetPolicy(t.Context(), keeper.NewPolicy{Policy: lends(test.entries)}); (err == nil) != (test.kind == fault.Internal) || err != nil && fault.KindOf(err) != test.kind {
				t.Errorf("%s: %v", test.name, err)
			}
		}
	})
}
