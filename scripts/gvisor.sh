#!/bin/sh
# Builds runsc, gVisor's runtime, from the version that gvisor/go.mod pins, once for each version, and puts it beside the other programs.
set -eu
bin=$(pwd)/bin
cd gvisor
version=$(go list -m -f '{{.Version}}' gvisor.dev/gvisor)
if [ "$(id -u)" = 0 ]; then default=/var/cache/cofferdam-tools; else default=${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam-tools; fi
dir=${COFFERDAM_TOOLS:-$default}/runsc-$version-$(go env GOARCH)-$(cat go.mod go.sum ./*.go | sha256sum | cut -c1-12)
if [ ! -x "$dir/runsc" ]; then
	mkdir -p "$dir"
	echo "gvisor: building runsc $version in $dir (about three minutes of two processors)"
	CGO_ENABLED=0 nice -n 10 go build -trimpath -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$version" -o "$dir/runsc.new.$$" .
	mv "$dir/runsc.new.$$" "$dir/runsc"
fi
mkdir -p "$bin"
ln -f "$dir/runsc" "$bin/runsc" 2>/dev/null || cp -f "$dir/runsc" "$bin/runsc"
chmod 755 "$bin/runsc"
