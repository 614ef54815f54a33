#!/bin/sh
# Builds the small kernel for virtual machines from the distribution's source package, with all that a machine needs built in and nothing else, once for each version of
# the source and of deploy/guest-kernel.config. What the build needs is installed by root, and unpacked beside other tools by others.
set -eu
export LC_ALL=C
if [ "$(id -u)" = 0 ]; then default=/var/cache/cofferdam-tools; else default=${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam-tools; fi
cache=${COFFERDAM_TOOLS:-$default}
source=linux-source-6.12
config=$(pwd)/deploy/guest-kernel.config
die() {
	echo "guest-kernel: $1" >&2
	exit 1
}
command -v apt-get >/dev/null 2>&1 && [ "$(dpkg --print-architecture)" = amd64 ] || die "this script knows Debian on amd64 only"
known() { apt-cache show --no-all-versions "$1" 2>/dev/null | sed -n 's/^Version: //p'; }
[ -n "$(known $source)" ] || { [ "$(id -u)" = 0 ] && apt-get update -qq; } || die "apt-get knows no $source: have root run apt-get update"
to=$cache/guest-kernel-$(known $source | tr ':/' '__')-$(sha256sum <"$config" | cut -c1-12)
if [ -d "$to" ]; then
	echo "guest-kernel: $to is there already"
	exit 0
fi
mkdir -p "$cache"
work=$(mktemp -d "$cache/kernel-build.XXXXXX")
trap 'rm -rf "$work"' EXIT

unpack() { # DIRECTORY PACKAGE...
	mkdir -p "$work/packages" "$1"
	into=$1 && shift
	(cd "$work/packages" && apt-get download -qq -o APT::Sandbox::User=root "$@" >/dev/null) || die "apt-get cannot download $*"
	for package in "$work"/packages/*.deb; do dpkg -x "$package" "$into"; done
	rm -rf "$work/packages"
}

needs() { command -v flex && command -v bison && command -v bc && command -v gcc && command -v make && [ -e /usr/include/libelf.h ]; }
set --
if ! needs >/dev/null; then
	if [ "$(id -u)" = 0 ]; then
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends build-essential flex bison bc libelf-dev >/dev/null
	else
		command -v gcc >/dev/null && command -v make >/dev/null || die "gcc and make are missing: have root run apt-get install build-essential"
		tools=$work/tools
		unpack "$tools" flex bison bc m4 libelf-dev libelf1 zlib1g-dev libfl2 libsigsegv2
		PATH=$tools/usr/bin:$PATH LD_LIBRARY_PATH=$tools/usr/lib/x86_64-linux-gnu BISON_PKGDATADIR=$tools/usr/share/bison M4=$tools/usr/bin/m4
		export PATH LD_LIBRARY_PATH BISON_PKGDATADIR M4
		set -- "HOSTCFLAGS=-I$tools/usr/include" "HOSTLDFLAGS=-L$tools/usr/lib/x86_64-linux-gnu"
	fi
fi

echo "guest-kernel: building $source in $work (about fifteen minutes of one processor)"
unpack "$work/source" $source
mkdir "$work/linux"
tar -C "$work/linux" --strip-components 1 -xf "$work/source/usr/src/$source.tar.xz"
rm -rf "$work/source"
cd "$work/linux"
# The same bytes from the same source.
KBUILD_BUILD_TIMESTAMP='Thu Jan 1 00:00:00 UTC 1970' KBUILD_BUILD_USER=cofferdam KBUILD_BUILD_HOST=cofferdam
export KBUILD_BUILD_TIMESTAMP KBUILD_BUILD_USER KBUILD_BUILD_HOST
make -s "$@" KCONFIG_ALLCONFIG="$config" allnoconfig >"$work/log" 2>&1 || die "the configuration fails: $(tail -n 5 "$work/log")"
# What the source does not know, or gives only with something that is not asked for, is left out without a word.
lost=$(grep '=y$' "$config" | grep -vxFf .config || true)
[ -z "$lost" ] || die "these settings do not hold: $(echo "$lost" | tr '\n' ' ')"
if ! nice -n 10 make -s -j "$(nproc)" "$@" vmlinux >"$work/log" 2>&1; then
	tail -n 20 "$work/log" >&2
	die "the build fails"
fi
mkdir "$work/result"
strip -s -o "$work/result/vmlinux" vmlinux
make -s kernelrelease >"$work/result/release"
mv -T "$work/result" "$to"
echo "guest-kernel: built $(cat "$to/release"); make vm takes it"
