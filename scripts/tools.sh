#!/bin/sh
# Installs what the tests use and this machine lacks. Without root or apt it says what will be skipped.
set -eu
want="nft:nftables bwrap:bubblewrap newuidmap:uidmap ip:iproute2 curl:curl python3:python3 git:git strace:strace tmux:tmux gcc:gcc dig:dnsutils ping:iputils-ping git-lfs:git-lfs gh:gh aws:awscli redis-server:redis-server chromium:chromium"
packages=""
for pair in $want; do
	command -v "${pair%%:*}" >/dev/null 2>&1 || packages="$packages ${pair##*:}"
done
for pair in dulwich:python3-dulwich pygit2:python3-pygit2 requests:python3-requests; do # for the system's own Python, whatever else is in the search path
	/usr/bin/python3 -c "import ${pair%%:*}" >/dev/null 2>&1 || packages="$packages ${pair##*:}"
done
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || packages="$packages postgresql"
[ -n "$packages" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "tools: missing, tests that need them are skipped:$packages"
	exit 0
fi
echo "tools: installing$packages"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
