#!/bin/sh
# Installs what the benchmarks compare with and this machine lacks. Without root or apt it says what will be left out of the table.
set -eu
want="bwrap:bubblewrap runc:runc podman:podman skopeo:skopeo umoci:umoci haproxy:haproxy tinyproxy:tinyproxy squid:squid-openssl mitmdump:mitmproxy taskset:util-linux socat:socat rg:ripgrep"
packages=""
for pair in $want; do
	command -v "${pair%%:*}" >/dev/null 2>&1 || packages="$packages ${pair##*:}"
done
[ -n "$packages" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "bench-tools: missing, left out of the comparison:$packages"
	exit 0
fi
echo "bench-tools: installing$packages"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
