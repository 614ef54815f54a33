#!/bin/sh
# Builds a real Gitea from its Go module, once, and runs the tests of pull requests against it. Where it cannot be built it says why and skips.
# Its server refuses to run as root: the test starts it as nobody then.
set -eu
version=v1.26.0
if [ "$(id -u)" = 0 ]; then default=/var/cache/cofferdam-tools; else default=${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam-tools; fi
dir=${COFFERDAM_TOOLS:-$default}/gitea-$version
skip() {
	echo "gitea: skipped: $1"
	exit 0
}
if [ ! -x "$dir/gitea" ]; then
	command -v gcc >/dev/null 2>&1 || skip "its database needs gcc to build"
	mkdir -p "$dir" || skip "$dir cannot be made: set COFFERDAM_TOOLS"
	source=$(cd / && go mod download -json "code.gitea.io/gitea@$version" 2>/dev/null | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p') || source=
	[ -n "$source" ] || skip "its module cannot be had"
	echo "gitea: building $version in $dir (about five minutes of two processors)"
	(cd "$source" && CGO_ENABLED=1 nice -n 19 go build -trimpath -tags 'sqlite sqlite_unlock_notify' -o "$dir/gitea.new" . 2>"$dir/build.log") ||
		skip "it does not build here: see $dir/build.log"
	rm -rf "$dir/static" && mkdir "$dir/static"
	cp -r "$source/options" "$source/templates" "$source/public" "$dir/static/"
	chmod -R u+w,go+rX "$dir"
	mv "$dir/gitea.new" "$dir/gitea"
fi
COFFERDAM_GITEA=$dir go test -count=1 -timeout 5m -v -run '^TestRealGitea' ./internal/gateway/git/forge
