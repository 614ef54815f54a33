package fault

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestKinds(t *testing.T) {
	if Kind(0) != Internal {
		t.Error("the zero kind must tell the outside nothing")
	}
	seen := map[string]bool{}
	for k := Internal; k <= Unsupported; k++ {
		if name := k.String(); strings.HasPrefix(name, "kind(") || seen[name] {
			t.Errorf("kind %d is called %q", k, name)
		} else {
			seen[name] = true
		}
	}
	if got := (Unsupported + 1).String(); !strings.HasPrefix(got, "kind(") {
		t.Errorf("a kind beyond the last is called %q", got)
	}
}

func TestChain(t *testing.T) {
	err := fmt.Errorf("outer: %w", New(Denied, "no %s", "way").WithHint("ask").Because(errors.New("secret detail")))
	if KindOf(err) != Denied || Public(err) != "no way" || HintOf(err) != "ask" || !strings.Contains(err.Error(), "secret detail") {
		t.Errorf("%v, %q, %q, %v", KindOf(err), Public(err), HintOf(err), err)
	}
	if plain := errors.New("boom"); KindOf(plain) != Internal || Public(plain) != "internal error" || HintOf(plain) != "" {
		t.Error("an error without a kind says something to the outside")
	}
}
