# Cofferdam. Type "make" for the targets.

GO      ?= go
BIN     := bin
RELEASE := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -s -w -X main.release=$(RELEASE)
# The same for builds, tests and checks, so that one cache serves all: the packages of the databases take minutes to compile.
export CGO_ENABLED = 0
export GOFLAGS = -trimpath

.PHONY: help build gvisor vm guest-kernel demo test test-gitea check attack churn bench tools clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the programs into bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

gvisor: build ## build runsc into bin/ for --isolation gvisor (once for each version, three minutes)
	@sh scripts/gvisor.sh

vm: build ## get QEMU and a kernel, and make bin/vm for --isolation vm and vm-emulated (Debian, amd64)
	@sh scripts/vm.sh

guest-kernel: ## build a small kernel for virtual machines, which "make vm" then takes (once for each version, nine minutes)
	@sh scripts/vm-kernel.sh

demo: build ## the main job on real input: install a package with one way out, then try to get out
	@sh scripts/demo.sh

tools: ## install what the tests use and this machine lacks (Debian, root)
	@sh scripts/tools.sh

test: build tools ## every test that this machine can run
	@sh scripts/test.sh

check: ## quick and offline: formatting, vet, fixes, staticcheck, unit tests
	@sh scripts/check.sh

attack: build tools ## only the attack suite: one line a case, anything but BLOCKED fails; LEVEL=gvisor or LEVEL=vm-emulated for that level
	@[ "$(LEVEL)" != gvisor ] || sh scripts/gvisor.sh
	@[ "$(LEVEL)" != vm-emulated ] || sh scripts/vm.sh
	COFFERDAM_BIN=$(CURDIR)/$(BIN) $(GO) test ./e2e -run '^TestAttack$$' -count=1 -v -timeout 90m | grep -vE '^(=== |\s*---)'

churn: build tools ## CHURN sandboxes (2,000) at every level there is, ended at random moments in every way: nothing may be left (make gvisor, make vm before)
	CHURN=$(or $(CHURN),2000) COFFERDAM_BIN=$(CURDIR)/$(BIN) $(GO) test ./e2e -run '^TestChurn$$' -count=1 -v -timeout 60m

test-gitea: ## pull requests against a real Gitea, which is built once (needs gcc and its Go module; skips without)
	@sh scripts/gitea.sh

bench: build ## speed and memory, side by side with what else could be used
	@sh scripts/bench-tools.sh
	$(GO) run ./bench -programs $(CURDIR)/$(BIN)

clean: ## remove what was built
	rm -rf $(BIN)
