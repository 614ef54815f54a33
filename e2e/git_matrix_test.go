package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cofferdam/cofferdam/internal/testenv"
)

// TestGitMatrix runs every client through what it can do, allowed and denied, in one sandbox each.
func TestGitMatrix(t *testing.T) {
	testenv.Need(t, "tool:git-lfs")
	for _, c := range gitClients() {
		t.Run(c.name, func(t *testing.T) {
			needClient(t, c)
			forEachUser(t, func(t *testing.T, h *house) {
				f := newForge(t)
				g := newGitHouse(h, f, "")
				layClients(t, filepath.Join(h.project, "clients"))
				g.own(g.home)
				base := gitInside
				if c.settled {
					base = g.direct()
				}
				before, steps := f.refs("acme/site.git"), gitSteps(c)
				r := g.script(2*time.Minute, gitScript(c, base, steps), "--disk", "1g")
				cases := judgeSteps(t, f, c, steps, before, r.stdout, false)
				noToken(t, "inside", r.stdout+r.stderr)
				for _, s := range steps {
					for _, want := range c.refusal(s) {
						if s.denied() && !strings.Contains(cases[s.id].output, want) {
							t.Errorf("%s %s: no %q in\n%s", c.name, s.id, want, cases[s.id].output)
						}
					}
				}
				checkGitRecords(t, steps, g.records())
				for _, q := range f.requests(0) {
					if strings.Contains(q.path, "hidden") {
						t.Errorf("the forge was asked for a repository that policy does not open: %+v", q)
					}
				}
				g.searchTokens()
			})
		})
	}
}

// checkGitRecords looks for each step in the audit log: what was wanted of which repository by which sandbox, with which credential, and by which rule.
func checkGitRecords(t *testing.T, steps []gitStep, records []map[string]any) {
	t.Helper()
	find := func(want map[string]string) map[string]any {
		for _, e := range records {
			all := true
			for member, value := range want {
				all = all && strings.Trim(fmt.Sprint(e[member]), "[]") == value
			}
			if all {
				return e
			}
		}
		return nil
	}
	repositories := map[string]string{"readonly": "acme/read", "sha256": "acme/new", "lfs": "acme/read"}
	for _, s := range steps {
		repository := repositories[s.operation()]
		if repository == "" {
			repository = "acme/site"
		}
		// Of those denied, the one that was refused; of those allowed, also how it ended.
		want := map[string]string{"kind": "crossing.decided", "verdict": "deny", "protocol": "git", "host": gitHost, "reason": s.why, "repository": "test/" + repository}
		switch {
		case s.denied() && s.push == "" && strings.Contains(s.why, "hidden"):
			want["repository"], want["access"] = "test/acme/hidden", "read"
		case s.denied() && s.push == "":
			want["access"] = "write"
		case s.denied():
			want["access"], want["credential"] = "write", "forge"
			if s.operation() != "many" {
				want["refs"] = s.push
			}
		case len(s.sets) == 1:
			want = map[string]string{"kind": "crossing.finished", "access": "write", "repository": "test/" + repository, "credential": "forge", "refs": s.sets[0] + " ok", "status": "200", "address": "127.0.0.1"}
		case len(s.deletes) == 1:
			want = map[string]string{"kind": "crossing.finished", "access": "write", "repository": "test/" + repository, "credential": "forge", "refs": s.deletes[0] + " ok", "status": "200"}
		default:
			continue
		}
		e := find(want)
		if e == nil {
			t.Errorf("%s: not on record as %v", s.id, want)
			continue
		}
		if run, _ := e["run"].(string); run == "" || e["principal"] != "sandbox" || s.denied() && e["rule"] == nil {
			t.Errorf("%s: the record does not say who, or by which rule: %v", s.id, e)
		}
	}
	if find(map[string]string{"kind": "crossing.decided", "verdict": "allow", "access": "read", "repository": "test/acme/site", "credential": "forge", "rule": "git:worker"}) == nil {
		t.Error("no clone is on record as allowed, with its rule")
	}
}
