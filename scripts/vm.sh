#!/bin/sh
# Makes bin/vm, from which virtual machines are started: a kernel, an initial file system with cofferdam-guest and cofferdam-runner, and a description of both that names QEMU.
# The kernel is the small one of "make guest-kernel" if that was built, else the distribution's for clouds (VM_KERNEL=distribution chooses that in any case).
# QEMU is the one in the search path; where there is none root installs the distribution's, and others unpack it beside their other tools, as root does with VM_PRIVATE=1.
set -eu
bin=${COFFERDAM_BIN:-$(pwd)/bin}
export LC_ALL=C
if [ "$(id -u)" = 0 ]; then default=/var/cache/cofferdam-tools; else default=${XDG_CACHE_HOME:-$HOME/.cache}/cofferdam-tools; fi
cache=${COFFERDAM_TOOLS:-$default}
die() {
	echo "vm: $1" >&2
	exit 1
}
if ! command -v apt-get >/dev/null 2>&1 || [ "$(dpkg --print-architecture)" != amd64 ]; then
	die "this script knows Debian on amd64 only: put vmlinux, initramfs.cpio and about.json into bin/vm with go run ./internal/guest/mkvm"
fi
mkdir -p "$cache"
part=$(mktemp -d "$cache/unpack.XXXXXX")
trap 'rm -rf "$part"' EXIT
known() { apt-cache show --no-all-versions "$1" 2>/dev/null | sed -n 's/^Version: //p'; }
[ -n "$(known qemu-system-x86)" ] || { [ "$(id -u)" = 0 ] && apt-get update -qq; } || die "apt-get knows no packages here: have root run apt-get update"

unpack() { # DIRECTORY PACKAGE...: unpacks the packages there, installing nothing; the directory appears when all of it is there
	to=$1 && shift
	mkdir "$part/root" "$part/packages"
	(cd "$part/packages" && apt-get download -qq -o APT::Sandbox::User=root "$@" >/dev/null) || die "apt-get cannot download $*"
	for package in "$part"/packages/*.deb; do dpkg -x "$package" "$part/root"; done
	mv -T "$part/root" "$to" 2>/dev/null || [ -d "$to" ] || die "cannot make $to" # another one may have been quicker
	rm -rf "$part/root" "$part/packages"
}

libraries='' firmware=/usr/share/qemu:/usr/share/seabios
if [ "${VM_PRIVATE:-}" != 1 ] && ! command -v qemu-system-x86_64 >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
	echo "vm: installing QEMU"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-x86 >/dev/null
fi
if [ "${VM_PRIVATE:-}" != 1 ] && qemu=$(command -v qemu-system-x86_64); then
	qemu=$(readlink -f "$qemu")
else
	own=$cache/qemu-$(known qemu-system-x86 | tr ':/' '__')
	if [ ! -d "$own" ]; then
		echo "vm: unpacking QEMU in $own"
		missing=$(apt-get install -s --no-install-recommends qemu-system-x86 | sed -n 's/^Inst \([^ ]*\).*/\1/p')
		# shellcheck disable=SC2086 # a list of packages
		unpack "$own" ${missing:-qemu-system-x86 qemu-system-common qemu-system-data seabios} # those alone if the system has all else
	fi
	qemu=$own/usr/bin/qemu-system-x86_64
	libraries=$own/usr/lib/x86_64-linux-gnu:$own/lib/x86_64-linux-gnu
	firmware=$own/usr/share/qemu:$own/usr/share/seabios
fi

small=$(ls -d "$cache"/guest-kernel-*-"$(sha256sum <deploy/guest-kernel.config | cut -c1-12)" 2>/dev/null | tail -n 1)
if [ -n "$small" ] && [ "${VM_KERNEL:-}" != distribution ]; then
	set -- -machine microvm -release "$(cat "$small/release")" -kernel "$small/vmlinux"
else
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	[ -n "$package" ] || die "apt-get knows no kernel for clouds"
	release=${package#linux-image-}
	kernel=$cache/kernel-$release-$(known "$package" | tr ':/' '__')
	if [ ! -d "$kernel" ]; then
		echo "vm: unpacking kernel $release in $kernel"
		unpack "$kernel" "$package"
	fi
	modules=$kernel/lib/modules/$release
	[ -d "$modules" ] || modules=$kernel/usr/lib/modules/$release
	set -- -machine q35 -release "$release" -kernel "$kernel/boot/vmlinuz-$release" -modules "$modules"
fi
go run ./internal/guest/mkvm "$@" -qemu "$qemu" -libraries "$libraries" -firmware "$firmware" -programs "$bin" -out "$bin/vm"
