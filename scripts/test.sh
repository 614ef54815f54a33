#!/bin/sh
# Every test that this machine can run. What was skipped, and why, is listed at the end.
set -eu
sh scripts/gvisor.sh || echo "test: runsc cannot be built here: what needs level gvisor is skipped, or fails where REQUIRE names it"
sh scripts/vm.sh || echo "test: there are no virtual machines here: what needs level vm-emulated is skipped, or fails where REQUIRE names it"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
COFFERDAM_BIN=$(pwd)/bin
export COFFERDAM_BIN
status=0
go test -count=1 -timeout 40m -v ./api/... ./client/... ./internal/... ./cmd/... ./e2e/... ./bench/... >"$log" 2>&1 || status=$?
grep -aE '^(ok|FAIL|panic:)|^ *--- FAIL|no test files' "$log" | grep -av 'no test files' || true
if [ "$status" != 0 ]; then
	echo "--- output of what failed:"
	awk '/^=== RUN/ { name = $3 } { line[name] = line[name] $0 "\n" } /--- FAIL/ { failed[$3] = 1 } END { for (n in failed) printf "%s", line[n] }' "$log" | tail -n 400
fi
skipped=$(grep -acE '^ *--- SKIP' "$log" || true)
passed=$(grep -acE '^ *--- PASS' "$log" || true)
failed=$(grep -acE '^ *--- FAIL' "$log" || true)
if [ "$skipped" != 0 ]; then
	echo "skipped, and why:"
	grep -a -A1 -E '^ *--- SKIP' "$log" | grep -av '^--$' | sed 's/^ */  /'
fi
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
