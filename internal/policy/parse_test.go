package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cofferdam/cofferdam/internal/fault"
)

const complete = `# everything that there is
version: 1
description: tests
isolation: {level: vm, minimum: gvisor, image: "registry.example.org/tools@sha256:00"}
resources: {cpus: 1.5, memory: 4GiB, pids: 512, open-files: 4096, disk: 8g, files: 100000, scratch: encrypted, timeout: 30m, connections: 64, bandwidth: 10MiB, output: 64MiB}
workspace:
  mode: rw
  unprotected: [.github/workflows/ci.yaml]
mounts:
  - {source: /srv/data, target: /data}
  - {source: /srv/out, target: /out, mode: rw}
environment: {LANG: C.UTF-8, EMPTY: ""}
egress:
  default: ask
  networks: [203.0.113.0/24, 10.9.9.9]
  rules:
    - name: registry
      hosts: [registry.example.com, "*.example.org"]
      ports: [443]
      protocol: tls
    - hosts: [plain.example.com]
    - networks: [10.1.2.0/24]
      ports: [5432]
      protocol: tcp
      verdict: ask
`

func TestParseComplete(t *testing.T) {
	p := mustParse(t, complete)
	if diff := cmp.Diff(Resources{
		MilliCPUs: 1500, Memory: 4 * GiB, PIDs: 512, OpenFiles: 4096, Disk: 8 * GiB, Files: 100000, Scratch: ScratchEncrypted, Timeout: 30 * time.Minute, Connections: 64,
		Bandwidth: 10 * MiB, Output: 64 * MiB,
	}, p.Resources()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(Workspace{Mode: WorkspaceReadWrite, Unprotected: []string{".github/workflows/ci.yaml"}}, p.Workspace()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Mount{{Source: "/srv/data", Target: "/data"}, {Source: "/srv/out", Target: "/out", Mode: ReadWrite}}, p.Mounts()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"LANG": "C.UTF-8", "EMPTY": ""}, p.Environment()); diff != "" {
		t.Error(diff)
	}
	if p.Default() != Ask || !p.AsksRaw() {
		t.Error("the default is not to ask")
	}
	if got := p.Networks(); !slices.Equal(got, []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")}) {
		t.Errorf("networks %v", got)
	}
	var names []string
	for _, r := range p.Rules() {
		names = append(names, fmt.Sprintf("%s:%d", r.Name, r.Line))
	}
	if diff := cmp.Diff([]string{"registry:17", "rule 2:21", "rule 3:22"}, names); diff != "" {
		t.Error(diff)
	}
	if len(p.Warnings()) > 0 {
		t.Errorf("warnings %v", p.Warnings())
	}
}

func TestAccessorsCopy(t *testing.T) {
	p := mustParse(t, complete)
	p.Environment()["LANG"] = "x"
	p.Mounts()[0].Source = "/"
	p.Workspace().Unprotected[0] = "x"
	p.Rules()[0].Ports[0] = 22
	p.With(Rule{Name: "x", Verdict: Deny, Hosts: p.Rules()[0].Hosts})
	if diff := cmp.Diff("C.UTF-8 /srv/data .github/workflows/ci.yaml 443", fmt.Sprint(p.Environment()["LANG"], " ", p.Mounts()[0].Source, " ", p.Workspace().Unprotected[0], " ", p.Rules()[0].Ports[0])); diff != "" {
		t.Error(diff)
	}
	if d := p.Decide(crossing(t, "tls registry.example.com:443")); d.Verdict != Allow {
		t.Errorf("With changed its receiver: %+v", d)
	}
}

// mistake is a wrong document and what has to be said about it: "LINE:COLUMN PATH: part of the message".
type mistake struct {
	text string
	want []string
	// loose marks what the schema cannot see.
	loose bool
}

func mistakes() map[string]mistake {
	rule := func(body string) string { return "version: 1\negress:\n  rules:\n    - " + body + "\n" }
	upstream := func(list string) string { return "version: 1\ngit:\n  upstreams:\n    [" + list + "]\n" }
	profile := func(keys string) string {
		return "version: 1\ngit: {profiles: [{name: a, access: write, " + keys + "}]}\n"
	}
	repositories := func(list string) string {
		return "version: 1\ngit:\n  upstreams: [{name: a, url: \"https://a.example\"}]\n  repositories: [" + list + "]\n"
	}
	return map[string]mistake{
		"empty":              {text: "", want: []string{"1:1 : empty"}},
		"comments":           {text: "# nothing\n", want: []string{"1:1 : only comments"}},
		"scalar":             {text: "hello\n", want: []string{"1:1 : keys and values belong"}},
		"list":               {text: "- a\n", want: []string{"1:1 : keys and values belong"}},
		"null":               {text: "---\n~\n", want: []string{"2:1 version: empty"}},
		"no version":         {text: "description: x\n", want: []string{"1:1 version: missing"}},
		"version 2":          {text: "version: 2\n", want: []string{"1:10 version: version 2"}},
		"version text":       {text: "version: \"1\"\n", want: []string{"1:10 version: text where a number"}},
		"version float":      {text: "version: 1.0\n", want: []string{"1:10 version: version 1.0"}, loose: true},
		"unknown key":        {text: "version: 1\negres: {}\n", want: []string{`2:1 : unknown key "egres"`}},
		"unknown nested key": {text: rule("{hosts: [a.example], port: [1]}"), want: []string{`4:28 egress.rules[0]: unknown key "port"`}},
		"reserved":           {text: "version: 1\nmcp: {}\napprovals: []\n", want: []string{"2:1 mcp: no section", "3:1 approvals: no section"}},
		"twice":              {text: "version: 1\nversion: 1\n", want: []string{"2:1 version: line 1 already"}, loose: true},
		"twice nested":       {text: "version: 1\negress:\n  default: deny\n  default: ask\n", want: []string{"4:3 egress.default: line 3 already"}, loose: true},
		"anchor":             {text: "version: &v 1\n", want: []string{"1:10 : anchors"}, loose: true},
		"alias":              {text: "version: 1\ndescription: &d x\nenvironment: {A: *d}\n", want: []string{"2:14 : anchors", "3:18 : aliases"}, loose: true},
		"alias list":         {text: "version: 1\nmounts: &m []\negress: {rules: *m}\n", want: []string{"2:9 : anchors", "3:17 : aliases"}, loose: true},
		"merge":              {text: "version: 1\nenvironment:\n  <<: {A: b}\n", want: []string{"3:3 : merge"}, loose: true},
		"tag":                {text: "version: !!int 1\n", want: []string{"1:10 : explicit tags"}, loose: true},
		"binary":             {text: "version: 1\ndescription: !!binary aGVsbG8=\n", want: []string{"2:14 : explicit tags", "2:14 description: text belongs"}, loose: true},
		"two documents":      {text: "version: 1\n---\nversion: 1\n", want: []string{"2:1 : 2 documents"}, loose: true},
		"syntax":             {text: "version: 1\negress: [\n", want: []string{": flow"}, loose: true},
		"tab":                {text: "version: 1\negress:\n\tdefault: deny\n", want: []string{"3:1 : cannot start any token"}, loose: true},
		"control character":  {text: "version: 1\ndescription: a\x00b\n", want: []string{"2:15 : control characters"}, loose: true},
		"latin-1":            {text: "version: 1\ndescription: caf\xe9\n", want: []string{"1:1 : not UTF-8"}, loose: true},
		"utf-16":             {text: "\xff\xfev\x00", want: []string{"1:1 : not UTF-8"}, loose: true},
		"deep":               {text: "version: 1\ndescription: " + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "\n", want: []string{"2:14 description: a list where text", "2:30 : deep"}},
		"too large":          {text: "version: 1\n#" + strings.Repeat("x", 1<<20), want: []string{"1:1 : larger than"}, loose: true},
		"complex key":        {text: "version: 1\n? [a]\n: b\n", want: []string{"2:3 : a key that is a list"}, loose: true},
		"description":        {text: "version: 1\ndescription: 5\n", want: []string{"2:14 description: a number where text"}},
		"isolation":          {text: "version: 1\nisolation: {level: pod}\n", want: []string{"2:20 isolation.level: no isolation level pod"}},
		"isolation minimum":  {text: "version: 1\nisolation: {level: container, minimum: vm-emulated}\n", want: []string{"isolation.level: isolation level container is weaker than the minimum, vm-emulated"}, loose: true},
		"isolation image":    {text: "version: 1\nisolation: {image: \"a b\"}\n", want: []string{`isolation.image: "a b" is not a reference`}},
		"isolation option":   {text: "version: 1\nisolation: {image: -v}\n", want: []string{`isolation.image: "-v" is not a reference`}},
		"isolation unknown":  {text: "version: 1\nisolation: {level: none}\n", want: []string{`2:20 isolation.level: unknown isolation level "none"`}},
		"isolation list":     {text: "version: 1\nisolation: [container]\n", want: []string{"2:12 isolation: a list where keys"}},

		"cpus zero":          {text: "version: 1\nresources: {cpus: 0}\n", want: []string{"2:19 resources.cpus: 0 would let nothing run"}},
		"cpus negative":      {text: "version: 1\nresources: {cpus: -1}\n", want: []string{`2:19 resources.cpus: "-1"`}},
		"cpus absurd":        {text: "version: 1\nresources: {cpus: 100000}\n", want: []string{"2:19 resources.cpus: too much"}},
		"cpus text":          {text: "version: 1\nresources: {cpus: \"2\"}\n", want: []string{"2:19 resources.cpus: text where a number"}},
		"cpus nan":           {text: "version: 1\nresources: {cpus: .nan}\n", want: []string{"2:19 resources.cpus: "}, loose: true},
		"cpus exponent":      {text: "version: 1\nresources: {cpus: 1e2}\n", want: []string{"2:19 resources.cpus: "}, loose: true},
		"memory tiny":        {text: "version: 1\nresources: {memory: 512}\n", want: []string{"2:21 resources.memory: too little"}},
		"memory unit":        {text: "version: 1\nresources: {memory: 4GB}\n", want: []string{`2:21 resources.memory: "4GB"`}},
		"memory overflow":    {text: "version: 1\nresources: {memory: 99999999999TiB}\n", want: []string{"2:21 resources.memory: "}, loose: true},
		"memory negative":    {text: "version: 1\nresources: {memory: -4GiB}\n", want: []string{"2:21 resources.memory: "}},
		"pids hex":           {text: "version: 1\nresources: {pids: 0x10}\n", want: []string{"2:19 resources.pids: "}, loose: true},
		"pids float":         {text: "version: 1\nresources: {pids: 10.5}\n", want: []string{"2:19 resources.pids: "}},
		"timeout number":     {text: "version: 1\nresources: {timeout: 90}\n", want: []string{"2:22 resources.timeout: without a unit"}},
		"timeout long":       {text: "version: 1\nresources: {timeout: 9000h}\n", want: []string{"2:22 resources.timeout: too much"}, loose: true},
		"timeout negative":   {text: "version: 1\nresources: {timeout: -5m}\n", want: []string{"2:22 resources.timeout: "}},
		"open files":         {text: "version: 1\nresources: {open-files: 63}\n", want: []string{"2:25 resources.open-files: too little"}},
		"files":              {text: "version: 1\nresources: {files: 10}\n", want: []string{"2:20 resources.files: too little"}},
		"scratch":            {text: "version: 1\nresources: {scratch: disk}\n", want: []string{"2:22 resources.scratch: "}},
		"scratch zero":       {text: "version: 1\nresources: {scratch: none}\n", want: []string{"2:22 resources.scratch: "}},
		"bandwidth":          {text: "version: 1\nresources: {bandwidth: 10MB/s}\n", want: []string{"2:24 resources.bandwidth: "}},
		"output":             {text: "version: 1\nresources: {output: 1}\n", want: []string{"2:21 resources.output: too little"}, loose: true},
		"connections":        {text: "version: 1\nresources: {connections: 65537}\n", want: []string{"2:26 resources.connections: too much"}},
		"workspace mode":     {text: "version: 1\nworkspace: {mode: write}\n", want: []string{"2:19 workspace.mode: "}},
		"unprotected dots":   {text: "version: 1\nworkspace: {unprotected: [../x, /etc, a/../b, \"\"]}\n", want: []string{"[0]: below the workspace", "[1]: below the workspace", "[2]: canonical", "[3]: below the workspace"}},
		"mount relative":     {text: "version: 1\nmounts: [{source: data, target: /data}]\n", want: []string{"2:19 mounts[0].source: not absolute"}},
		"mount dots":         {text: "version: 1\nmounts: [{source: /srv/../etc, target: /data/}]\n", want: []string{"2:19 mounts[0].source: canonical", "2:40 mounts[0].target: canonical"}, loose: true},
		"mount root":         {text: "version: 1\nmounts: [{source: /, target: /}]\n", want: []string{"2:19 mounts[0].source: whole host", "2:30 mounts[0].target: own root"}},
		"mount kernel":       {text: "version: 1\nmounts: [{source: /proc/1, target: /dev/x}]\n", want: []string{"source: kernel", "target: kernel"}, loose: true},
		"mount control":      {text: "version: 1\nmounts: [{source: \"/a\\nb\", target: /b}]\n", want: []string{"2:19 mounts[0].source: control"}, loose: true},
		"mount missing":      {text: "version: 1\nmounts: [{source: /a}, {}]\n", want: []string{"2:10 mounts[0]: no target", "2:24 mounts[1]: no source", "2:24 mounts[1]: no target"}},
		"mount twice":        {text: "version: 1\nmounts: [{source: /a, target: /x}, {source: /b, target: /x}]\n", want: []string{"2:36 mounts[1]: another mount"}, loose: true},
		"mount mode":         {text: "version: 1\nmounts: [{source: /a, target: /x, mode: wr}]\n", want: []string{"2:41 mounts[0].mode: "}},
		"environment name":   {text: "version: 1\nenvironment: {A-B: x, 1A: x}\n", want: []string{"2:15 environment.A-B: ", "2:23 environment.1A: "}},
		"environment number": {text: "version: 1\nenvironment: {PORT: 80}\n", want: []string{"2:21 environment.PORT: a number where text"}},
		"environment own":    {text: "version: 1\nenvironment: {COFFERDAM_TOKEN: x}\n", want: []string{"2:15 environment.COFFERDAM_TOKEN: own"}, loose: true},

		"default allow":      {text: "version: 1\negress: {default: allow}\n", want: []string{`2:19 egress.default: cannot be "allow"`}},
		"default unknown":    {text: "version: 1\negress: {default: none}\n", want: []string{`2:19 egress.default: cannot be "none"`}},
		"networks all":       {text: "version: 1\negress: {networks: [0.0.0.0/0, \"::/0\"]}\n", want: []string{"egress.networks[0]: more than one", "egress.networks[1]: more than one"}, loose: true},
		"networks public":    {text: "version: 1\negress: {networks: [8.8.8.0/24]}\n", want: []string{"2:21 egress.networks[0]: no special-purpose"}, loose: true},
		"networks cover":     {text: "version: 1\negress: {networks: [8.0.0.0/6]}\n", want: []string{"2:21 egress.networks[0]: more than one"}, loose: true},
		"networks host":      {text: "version: 1\negress: {networks: [10.1.2.3/24]}\n", want: []string{"2:21 egress.networks[0]: bits beyond"}, loose: true},
		"networks mapped":    {text: "version: 1\negress: {networks: [\"::ffff:10.0.0.0/104\", \"::ffff:168.0.0.0/103\"]}\n", want: []string{"networks[0]: another form", "networks[1]: another form"}, loose: true},
		"networks nat64":     {text: "version: 1\negress: {networks: [\"64:ff9b::/96\"]}\n", want: []string{"networks[0]: "}, loose: true},
		"networks name":      {text: "version: 1\negress: {networks: [mirror.example.com]}\n", want: []string{"2:21 egress.networks[0]: no network"}},
		"networks scalar":    {text: "version: 1\negress: {networks: 10.0.0.0/8}\n", want: []string{"2:20 egress.networks: text where a list"}},
		"rules mapping":      {text: "version: 1\negress: {rules: {hosts: [a.example]}}\n", want: []string{"2:17 egress.rules: keys and values where a list"}},
		"rule empty":         {text: rule("{}"), want: []string{"4:7 egress.rules[0]: neither hosts nor networks"}},
		"rule null":          {text: rule("~"), want: []string{"4:7 egress.rules[0]: empty"}},
		"rule text":          {text: rule("example.com"), want: []string{"4:7 egress.rules[0]: text where keys"}},
		"rule both":          {text: rule("{hosts: [a.example], networks: [10.0.0.0/8], ports: [1]}"), want: []string{"egress.rules[0].networks: both"}},
		"hosts empty":        {text: rule("{hosts: []}"), want: []string{"4:15 egress.rules[0].hosts: empty"}},
		"hosts scalar":       {text: rule("{hosts: a.example}"), want: []string{"4:15 egress.rules[0].hosts: text where a list"}},
		"host star":          {text: rule(`{hosts: ["*", "*.com", "**.example.com", "a.*.example.com"]}`), want: []string{"hosts[0]: every host", "hosts[1]: top-level", "hosts[2]: star", "hosts[3]: star"}, loose: true},
		"host address":       {text: rule(`{hosts: [10.1.2.3, "[::1]", "2001:db8::1", 10.0.0.0/8]}`), want: []string{"hosts[0]: address", "hosts[1]: address", "hosts[2]: address", "hosts[3]: address"}},
		"host spelling":      {text: rule(`{hosts: [Example.com, example.com., "https://example.com/x", "bücher.example", "a b", "a:443"]}`), want: []string{"hosts[0]: canonical", "hosts[1]: canonical", "hosts[2]: canonical", "hosts[3]: canonical", "hosts[4]: cannot occur", "hosts[5]: canonical"}},
		"host number":        {text: rule(`{hosts: [127]}`), want: []string{"hosts[0]: a number where text"}},
		"port wrap":          {text: rule(`{hosts: [a.example], ports: [65537, 0, -1]}`), want: []string{"ports[0]: no port", "ports[1]: no port", "ports[2]: no port"}},
		"port text":          {text: rule(`{hosts: [a.example], ports: ["443", https]}`), want: []string{"ports[0]: text where a number", "ports[1]: text where a number"}},
		"port octal":         {text: rule(`{hosts: [a.example], ports: [0o17, 1_0]}`), want: []string{"ports[0]: no port", "ports[1]: "}, loose: true},
		"port twice":         {text: rule(`{hosts: [a.example], ports: [443, 443]}`), want: []string{"ports[1]: twice"}},
		"ports empty":        {text: rule(`{hosts: [a.example], ports: []}`), want: []string{"ports: empty"}},
		"protocol":           {text: rule(`{hosts: [a.example], protocol: udp}`), want: []string{`protocol: protocol "udp"`}},
		"verdict":            {text: rule(`{hosts: [a.example], verdict: yes}`), want: []string{`verdict: verdict "yes"`}},
		"tcp without ports":  {text: rule(`{hosts: [a.example], protocol: tcp}`), want: []string{"explicit ports"}},
		"raw without ports":  {text: rule(`{networks: [10.0.0.0/8]}`), want: []string{"explicit ports"}},
		"raw loopback":       {text: rule(`{networks: [127.0.0.0/8], ports: [80]}`), want: []string{"4:19 egress.rules[0].networks: own loopback"}, loose: true},
		"raw synthetic":      {text: rule(`{networks: [198.18.0.0/24], ports: [80]}`), want: []string{"stands for names"}, loose: true},
		"raw denied ports":   {text: rule(`{networks: [8.8.8.0/24], ports: [53], verdict: deny}`), want: []string{"ports: every port"}},
		"name bad":           {text: rule(`{name: "a\nb", hosts: [a.example]}`), want: []string{"name: cannot be"}},
		"name built in":      {text: rule(`{name: default, hosts: [a.example]}`), want: []string{"name: built-in"}, loose: true},
		"name twice":         {text: rule("{name: a, hosts: [a.example]}\n    - {name: a, hosts: [b.example]}"), want: []string{"5:14 egress.rules[1].name: another rule"}, loose: true},
		"method case":        {text: rule(`{hosts: [a.example], methods: [get, "G T", TRACE, GET, GET]}`), want: []string{"methods[0]: upper case", "methods[1]: no method", "methods[2]: never passes", "methods[4]: twice"}, loose: true},
		"methods empty":      {text: rule(`{hosts: [a.example], methods: []}`), want: []string{"methods: empty"}},
		"method lower":       {text: rule(`{hosts: [a.example], methods: [get]}`), want: []string{"4:38 egress.rules[0].methods[0]: upper case"}},
		"path form":          {text: rule(`{hosts: [a.example], paths: [repos, "/a/../b", "/a*", "/a%2fb", "/a?b", /a, /a]}`), want: []string{"paths[0]: begin with a slash", "paths[1]: dot segment", "paths[2]: star", "paths[3]: canonical", "paths[4]: wildcard", "paths[6]: twice"}},
		"tls unknown":        {text: rule(`{hosts: [a.example], tls: none}`), want: []string{`tls: tls "none"`}},
		"tls deny":           {text: rule(`{hosts: [a.example], tls: tunnel, verdict: deny}`), want: []string{"4:33 egress.rules[0].tls: what is denied"}},
		"tunnel paths":       {text: rule(`{hosts: [a.example], tls: tunnel, paths: [/a]}`), want: []string{"paths: nobody reads"}},
		"tcp paths":          {text: rule(`{hosts: [a.example], ports: [1], protocol: tcp, paths: [/a]}`), want: []string{"paths: unread"}},
		"tls http":           {text: rule(`{hosts: [a.example], protocol: http, tls: inspect}`), want: []string{"tls: says nothing"}},
		"raw methods":        {text: rule(`{networks: [10.0.0.0/8], ports: [443], methods: [GET]}`), want: []string{"methods: need a name"}},
		"tunnel and paths":   {text: rule("{hosts: [\"*.a.example\"], tls: tunnel}\n    - {hosts: [b.a.example], paths: [/a]}"), want: []string{"egress.rules[0].tls: judges requests to the same host"}, loose: true},
		"credential empty":   {text: "version: 1\ncredentials: [{}]\n", want: []string{"2:15 credentials[0]: no use"}},
		"credential hosts":   {text: "version: 1\ncredentials: [{use: a}]\n", want: []string{"2:15 credentials[0]: no hosts"}},
		"credential name":    {text: "version: 1\ncredentials: [{use: A b, hosts: [a.example]}]\n", want: []string{"2:21 credentials[0].use: cannot be a credential's name"}},
		"credential key":     {text: "version: 1\ncredentials: [{use: a, hosts: [a.example], value: x}]\n", want: []string{`credentials[0]: unknown key "value"`}},
		"credential header":  {text: "version: 1\ncredentials: [{use: a, hosts: [a.example], header: host}, {use: a, hosts: [b.example], header: \"a b\"}]\n", want: []string{"[0].header: own", "[1].header: no header"}, loose: true},
		"credential env":     {text: "version: 1\ncredentials: [{use: a, hosts: [a.example], env: LD_PRELOAD}, {use: a, hosts: [b.example], env: 1A}]\n", want: []string{"[0].env: something else", "[1].env: "}, loose: true},
		"credential address": {text: "version: 1\ncredentials: [{use: a, hosts: [10.1.2.3]}]\n", want: []string{"hosts[0]: an address"}, loose: true},
		"credential clash":   {text: "version: 1\ncredentials: [{use: a, hosts: [\"*.a.example\"], paths: [/x/]}, {use: b, hosts: [b.a.example], paths: [/x/y], header: authorization}]\n", want: []string{"credentials[1]: both for some requests"}, loose: true},
		"credential vars":    {text: "version: 1\ncredentials: [{use: a, hosts: [a.example], env: T}, {use: b, hosts: [b.example], env: T}]\n", want: []string{"credentials[1]: same variable"}, loose: true},
		"credential env set": {text: "version: 1\nenvironment: {T: x}\ncredentials: [{use: a, hosts: [a.example], env: T}]\n", want: []string{"credentials[0].env: environment sets"}, loose: true},
		"credential tunnel":  {text: "version: 1\negress:\n  rules:\n    - hosts: [a.example]\n      tls: tunnel\ncredentials: [{use: a, hosts: [a.example]}]\n", want: []string{"5:7 egress.rules[0].tls: credential \"a\" is lent to the same host"}, loose: true},
		"credential tcp":     {text: "version: 1\negress:\n  rules:\n    - {hosts: [a.example], ports: [443], protocol: tcp}\ncredentials: [{use: a, hosts: [\"*.a.example\", a.example]}]\n", want: []string{"egress.rules[0].protocol: credential \"a\" is lent"}, loose: true},
		"git key":            {text: "version: 1\ngit: {upstream: []}\n", want: []string{`2:7 git: unknown key "upstream"`}},
		"git list":           {text: "version: 1\ngit: []\n", want: []string{"2:6 git: a list where keys"}},
		"git upstream keys":  {text: upstream("{url: \"https://a.example\"}, {name: b}, x"), want: []string{"4:6 git.upstreams[0]: no name", "[1]: no url", "[2]: keys and values belong"}},
		"git upstream null":  {text: "version: 1\ngit:\n  upstreams:\n    -\n", want: []string{"git.upstreams[0]: empty"}},
		"git upstream name":  {text: upstream("{name: Git_Hub, url: \"https://a.example\"}"), want: []string{"4:13 git.upstreams[0].name: cannot be a name"}},
		"git upstream type":  {text: upstream("{name: a, type: forgejo, url: \"https://a.example\"}"), want: []string{`git.upstreams[0].type: type "forgejo" is unknown`}},
		"git http":           {text: upstream("{name: a, url: \"http://a.example\"}"), want: []string{"git.upstreams[0].url: not https"}},
		"git ssh":            {text: upstream("{name: a, url: \"git@github.com:acme\"}"), want: []string{"git.upstreams[0].url: no URL with a host"}},
		"git user":           {text: upstream("{name: a, url: \"https://x:hunter2@a.example\"}"), want: []string{"git.upstreams[0].url: the URL has a user"}},
		"git query":          {text: upstream("{name: a, url: \"https://a.example?x\"}, {name: b, url: \"https://b.example/#x\"}"), want: []string{"[0].url: query", "[1].url: query"}},
		"git slash":          {text: upstream("{name: a, url: \"https://a.example/\"}"), want: []string{"[0].url: ends in a slash"}},
		"git port":           {text: upstream("{name: a, url: \"https://a.example:443\"}, {name: b, url: \"https://b.example:0\"}"), want: []string{"[0].url: has anyway", "[1].url: "}, loose: true},
		"git path":           {text: upstream("{name: a, url: \"https://a.example/a/../b\"}"), want: []string{"[0].url: canonical form"}, loose: true},
		"git host":           {text: upstream("{name: a, url: \"https://A.example\"}, {name: b, url: \"https://10.1.2.3\"}"), want: []string{"[0].url: ", "[1].url: "}},
		"git credential":     {text: upstream("{name: a, url: \"https://a.example\", credential: ghp_ABC}"), want: []string{"[0].credential: cannot be a credential's name"}},
		"git api":            {text: upstream("{name: a, url: \"https://a.example\", api: {url: \"https://b.example\"}}"), want: []string{"[0].api: type plain has no interface"}, loose: true},
		"git api url":        {text: upstream("{name: a, type: gitea, url: \"https://a.example\", api: {url: \"http://b.example\", key: x}}"), want: []string{"[0].api.url: not https", `[0].api: unknown key "key"`}},
		"git lfs address":    {text: upstream("{name: a, url: \"https://a.example\", lfs-hosts: [169.254.169.254]}"), want: []string{"[0].lfs-hosts[0]: an address"}, loose: true},
		"git lfs star":       {text: upstream("{name: a, url: \"https://a.example\", lfs-hosts: [\"*\"]}"), want: []string{"[0].lfs-hosts[0]: "}},
		"git twice":          {text: upstream("{name: a, url: \"https://a.example\"}, {name: a, url: \"https://b.example\"}"), want: []string{`[1].name: another upstream is called "a"`}, loose: true},
		"git same":           {text: upstream("{name: a, url: \"https://a.example/x\"}, {name: b, url: \"https://a.example\"}, {name: c, url: \"https://a.example/x/y\"}"), want: []string{`[1].url: upstream "a" holds the same`, `[2].url: upstream "a" holds the same`}, loose: true},

		"git profile keys":     {text: profile("x: 1"), want: []string{`git.profiles[0]: unknown key "x"`}},
		"git profile access":   {text: "version: 1\ngit: {profiles: [{name: a}, {access: read}, {name: b, access: none}]}\n", want: []string{"[0]: no access", "[1]: no name", "[2].access: unknown"}},
		"git profile read":     {text: "version: 1\ngit: {profiles: [{name: read, access: read}, {name: read, access: write, rules: [{branches: [a], allow: [create]}]}]}\n", want: []string{"[0].name: built in", "[1].name: built in, and only reads"}, loose: true},
		"git profile twice":    {text: "version: 1\ngit: {profiles: [{name: a, access: read}, {name: a, access: read}]}\n", want: []string{`[1].name: another profile is called "a"`}, loose: true},
		"git profile pushes":   {text: "version: 1\ngit: {profiles: [{name: a, access: read, max-refs: 1}]}\n", want: []string{"[0]: access: read says something about pushes"}},
		"git rule empty":       {text: profile("rules: [{}]"), want: []string{"rules[0]: about no refs"}},
		"git rule null":        {text: "version: 1\ngit:\n  profiles:\n    - name: a\n      access: write\n      rules:\n        -\n", want: []string{"7:10 git.profiles[0].rules[0]: empty"}},
		"git rule silent":      {text: profile("rules: [{branches: [a]}]"), want: []string{"rules[0]: does not say what is allowed"}},
		"git rule no refs":     {text: profile("rules: [{allow: [create]}]"), want: []string{"rules[0]: about no refs"}},
		"git rule null allow":  {text: profile("rules: [{branches: [a], allow: }]"), want: []string{"rules[0].allow: the list is empty"}},
		"git rule both":        {text: profile("rules: [{branches: [a], allow: [], propose: pull-request}]"), want: []string{"rules[0].propose: not both"}},
		"git rule allow":       {text: profile("rules: [{branches: [a], allow: [push, create, create]}]"), want: []string{`rules[0].allow[0]: change "push"`, "rules[0].allow[2]: twice"}},
		"git rule propose":     {text: profile("rules: [{branches: [a], propose: review}]"), want: []string{`rules[0].propose: "review" cannot be proposed`}},
		"git rule tags":        {text: profile("rules: [{tags: [a], propose: pull-request}]"), want: []string{"rules[0].propose: pull requests are for branches"}},
		"git rule invalid":     {text: profile("rules: [{branches: [a], allow: [invalid]}, {branches: [a], allow: [propose]}]"), want: []string{"rules[0].allow[0]: ", "rules[1].allow[0]: "}},
		"git rule force":       {text: profile("rules: [{branches: [a], allow: [create, force]}]"), want: []string{"rules[0].allow: force without update"}, loose: true},
		"git pattern":          {text: profile("rules: [{branches: [\"a b\", refs/heads/x, \"a**\", a.lock, \"\", /a, a/, a//b], allow: []}]"), want: []string{"[0]: no ref can match", "[1]: whole ref", "[2]: ** beside", "[3]: no ref can", "[4]: no ref can", "[5]: no ref can", "[6]: no ref can", "[7]: no ref can"}},
		"git pattern twice":    {text: profile("rules: [{branches: [a, a], allow: []}]"), want: []string{"branches[1]: twice"}},
		"git pattern none":     {text: profile("rules: [{branches: [], allow: []}]"), want: []string{"branches: the list is empty"}},
		"git pattern refs":     {text: profile("rules: [{refs: [notes/x, refs/heads/x, \"refs/Tags/**\", \"refs/*/x\", \"refs/**\", refs/stash], allow: []}]"), want: []string{"[0]: no whole ref", "[1]: below refs/heads have a key", "[2]: below refs/tags have a key", "[3]: every kind", "[4]: every kind", "[5]: no ref can"}, loose: true},
		"git option":           {text: profile("push-options: [\"*\", \"a*\", \"=*\", \"a=*b\", \"a\\nb\", a, a]"), want: []string{"[0]: no push option", "[1]: no push", "[2]: no push", "[3]: no push", "[4]: no push", "[6]: twice"}},
		"git protected":        {text: profile("protected-files: [/etc/passwd, ../x, \"**\", \"a/**/b\", \"*\", a//b, \"\", a, a]"), want: []string{"[0]: no path inside", "[1]: no path inside", "[2]: too wide", "[3]: too wide", "[4]: too wide", "[5]: no path inside", "[6]: no path inside", "[8]: twice"}},
		"git proposals":        {text: profile("proposals: agent/x"), want: []string{"proposals: cannot name the branches"}},
		"git proposals braces": {text: profile("proposals: \"a b/{id}\""), want: []string{"proposals: cannot name the branches"}, loose: true},
		"git sizes":            {text: profile("max-push: 1, max-refs: 0"), want: []string{"max-push: too little", "max-refs: 0 would let nothing"}},
		"git many refs":        {text: profile("max-refs: 1001"), want: []string{"max-refs: too much"}},

		"git entry keys":       {text: repositories("{upstream: a}, {repository: x/y, profile: read}"), want: []string{"git.repositories[0]: no profile", "git.repositories[1]: no upstream"}},
		"git entry none":       {text: repositories("{upstream: a, profile: read}"), want: []string{"[0]: names no repository"}},
		"git entry both":       {text: repositories("{upstream: a, repository: x/y, matching: x, profile: read}"), want: []string{"[0]: both repository and matching"}},
		"git entry upstream":   {text: repositories("{upstream: b, repository: x/y, profile: read}"), want: []string{`[0].upstream: no upstream "b"`}, loose: true},
		"git entry profile":    {text: repositories("{upstream: a, repository: x/y, profile: reed}"), want: []string{`[0].profile: no profile "reed"`}, loose: true},
		"git entry repository": {text: repositories("{upstream: a, repository: x/y.git, profile: read}, {upstream: a, repository: /x/y, profile: read}, {upstream: a, repository: x/../y, profile: read}"), want: []string{"[0].repository: no path of a", "[1].repository: no path", "[2].repository: no path"}},
		"git entry expression": {text: repositories("{upstream: a, matching: \"a)|(b\", profile: read}, {upstream: a, matching: \"(?=x)\", profile: read}, {upstream: a, matching: \"\", profile: read}"), want: []string{"[0].matching: no regular expression", "[1].matching: no regular", "[2].matching: no regular"}},
		"git entry twice":      {text: repositories("{upstream: a, repository: x/y, profile: read}, {upstream: a, repository: X/y, profile: read}, {upstream: a, matching: x, profile: read}, {upstream: a, matching: x, profile: read}"), want: []string{"[1]: line 4 is about the same", "[3]: line 4 is about the same"}, loose: true},
		"git propose plain": {text: "version: 1\ngit:\n  upstreams: [{name: a, url: \"https://a.example\"}, {name: b, type: gitea, url: \"https://b.example\"}]\n  profiles: [{name: p, access: write, rules: [{branches: [main], propose: pull-request}]}]\n" +
			"  repositories:\n    - {upstream: a, repository: x/y, profile: p}\n    - {upstream: b, repository: x/y, profile: p}\n", want: []string{"6:7 git.repositories[0].profile: of type plain, has none", "7:7 git.repositories[1].profile: no credential is there"}, loose: true},
		"many at once": {text: "version: 3\nresources: {cpus: 0}\negress: {default: x, rules: [{hosts: [Y]}]}\n", want: []string{
			"1:10 version: ", "2:19 resources.cpus: ", "3:19 egress.default: ", "3:39 egress.rules[0].hosts[0]: "}},
	}
}

func TestParseMistakes(t *testing.T) {
	for name, m := range mistakes() {
		t.Run(name, func(t *testing.T) {
			p, err := Parse("test.yaml", []byte(m.text))
			problems, ok := errors.AsType[*Problems](err)
			if p != nil || !ok || fault.KindOf(err) != fault.Invalid || fault.HintOf(err) == "" {
				t.Fatalf("Parse gave %v, %v; want no policy and problems of kind invalid with a hint", p, err)
			}
			if len(problems.List) != len(m.want) {
				t.Errorf("%d problems, want %d:\n%v", len(problems.List), len(m.want), err)
			}
			for i, got := range problems.List {
				if got.Message == "" || got.Remedy == "" || got.Line < 1 || got.Column < 1 || got.Warning {
					t.Errorf("problem %+v lacks something", got)
				}
				line := fmt.Sprintf("%d:%d %s: %s", got.Line, got.Column, got.Path, got.Message)
				if i >= len(m.want) {
					t.Errorf("unexpected: %s", line)
					continue
				}
				where, what, _ := strings.Cut(m.want[i], ": ")
				if !strings.Contains(line, where+": ") && !strings.Contains(line, where) || !strings.Contains(line, what) {
					t.Errorf("problem %q, want %q", line, m.want[i])
				}
			}
			if !strings.HasPrefix(err.Error(), "test.yaml:") {
				t.Errorf("the error does not begin with the file: %v", err)
			}
		})
	}
}

func TestRemedies(t *testing.T) {
	for text, want := range map[string]string{
		"version: 1\negres: {}\n":                                                      "did you mean egress?",
		"version: 1\nenvironment: {PORT: 8080}\n":                                      `"8080"`,
		"version: 1\nresources: {pids: \"512\"}\n":                                     "without quotes: 512",
		"version: 1\nresources: {timeout: 90}\n":                                       "90s",
		"version: 1\negress: {networks: [10.1.2.3/24]}\n":                              "write 10.1.2.0/24",
		"version: 1\negress: {networks: [\"::ffff:10.0.0.0/104\"]}\n":                  "write 10.0.0.0/8",
		"version: 1\negress: {rules: [{hosts: [Example.COM]}]}\n":                      "write example.com",
		"version: 1\negress: {rules: [{hosts: [10.0.0.1]}]}\n":                         "networks",
		"version: 1\nmounts: [{source: /a/, target: /b}]\n":                            `write "/a"`,
		"version: 1\nisolation: {level: pod}\n":                                        "gvisor",
		"version: 1\nisolation: {level: kata}\n":                                       "RuntimeClass",
		"version: 1\nisolation: {minimum: kata}\n":                                     "write vm",
		"version: 1\nisolation: {platform: kvm}\n":                                     "level: gvisor",
		"version: 1\nisolation: {level: gvisor, platform: pvm}\n":                      "systrap, kvm",
		"version: 1\ngit: {upstreams: [{name: a, url: \"https://a.example:443/\"}]}\n": "write https://a.example:443",
		"version: 1\ngit: {upstreams: [{name: a, url: \"https://a.example\"}], profiles: [{name: builder, access: read}], repositories: [{upstream: a, repository: x, profile: bilder}]}\n": "did you mean builder? use one of: read, builder",
		"version: 1\negress: {default: allow}\n":                               "by rules",
		"version: 1\negress: {rules: [{hosts: [a.example], protocol: tcp}]}\n": "add ports",
	} {
		_, err := Parse("", []byte(text))
		problems, ok := errors.AsType[*Problems](err)
		if !ok || !strings.Contains(problems.List[0].Remedy, want) {
			t.Errorf("%q: %v, want a remedy with %q", text, err, want)
		}
	}
}

func TestWarnings(t *testing.T) {
	for text, want := range map[string]string{
		"version: 1\nenvironment: {GITHUB_TOKEN: ghp_0123456789abcdef0123456789abcdef0123}\n":               "2:29: warning: environment.GITHUB_TOKEN: the value looks like a credential",
		"version: 1\nmounts: [{source: /var/run/docker.sock, target: /docker.sock}]\n":                      "2:10: warning: mounts[0]: ",
		"version: 1\nmounts: [{source: /etc/cron.d, target: /x, mode: rw}]\n":                               "take over the host",
		"version: 1\negress: {networks: [127.0.0.1]}\n":                                                     "2:21: warning: egress.networks[0]: 127.0.0.1/32: services of this host",
		"version: 1\negress: {networks: [169.254.169.254]}\n":                                               "credentials of this machine",
		"version: 1\negress: {rules: [{networks: [0.0.0.0/0], ports: [443]}]}\n":                            "stay closed",
		"version: 1\negress: {rules: [{networks: [169.254.169.254], ports: [80]}]}\n":                       "credentials of this machine",
		"version: 1\negress: {rules: [{networks: [10.0.0.0/8], ports: [80]}, {hosts: [a.example]}]}\n":      "",
		"version: 1\ngit: {profiles: [{name: a, access: write}]}\n":                                         "2:18: warning: git.profiles[0]: no push is allowed without rules",
		"version: 1\nmounts: [{source: /etc/ssl, target: /x}, {source: /srv, target: /srv, mode: rw}]\n":    "",
		"version: 1\nenvironment: {TOKEN_LIMIT: \"4096\", PATH_TO_SECRET: /a/b/c/d/e/f/g, A: cfd_abcdef}\n": "",
	} {
		p, err := Parse("", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		w := p.Warnings()
		if want == "" && len(w) == 0 {
			continue
		}
		if len(w) != 1 || !w[0].Warning || w[0].Remedy == "" || !strings.Contains(w[0].String(), want) || want == "" {
			t.Errorf("%q: warnings %v, want one with %q", text, w, want)
		}
		if strings.Contains(fmt.Sprint(w), "ghp_") {
			t.Errorf("a warning prints the credential: %v", w)
		}
	}
}

// FuzzParse holds that no bytes make the parser panic, and that a policy never allows a crossing that no rule of it allows.
func FuzzParse(f *testing.F) {
	f.Add([]byte(complete))
	f.Add([]byte(sample))
	f.Add([]byte(gitSample))
	f.Add([]byte(gitUpstreamText))
	for _, m := range mistakes() {
		if len(m.text) < 500 {
			f.Add([]byte(m.text))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("f", data)
		if err != nil {
			problems, ok := errors.AsType[*Problems](err)
			if !ok || len(problems.List) == 0 {
				t.Fatalf("error %v without problems", err)
			}
			return
		}
		for _, h := range []string{"registry.example.com", "example.com", "a.b", "dns.google"} {
			for _, port := range []uint16{0, 25, 80, 443, 853} {
				for protocol := range Git + 1 {
					c := Crossing{Protocol: protocol, Host: host(t, h), Port: port}
					if d := p.Decide(c); d.Verdict == Allow && !ruleAllows(p, c) {
						t.Fatalf("%+v is allowed by %+v, which is no rule about it", c, d)
					}
				}
			}
		}
		for _, a := range []string{"169.254.169.254", "127.0.0.1", "8.8.8.8", "::1"} {
			c := Crossing{Protocol: TCP, Addr: netip.MustParseAddr(a), Port: 443}
			if d := p.Decide(c); d.Verdict == Allow && !ruleAllows(p, c) {
				t.Fatalf("%+v is allowed by %+v, which is no rule about it", c, d)
			}
		}
	})
}

// ruleAllows restates, as plainly as can be, what must be so for a crossing to be allowed.
func ruleAllows(p *Policy, c Crossing) bool {
	for _, r := range p.Rules() {
		host := false
		for _, h := range r.Hosts {
			base := string(h.Base())
			host = host || c.Host != "" && (!h.Wildcard() && string(c.Host) == base || h.Wildcard() && strings.HasSuffix(string(c.Host), "."+base))
		}
		for _, n := range r.Networks {
			host = host || c.Host == "" && n.Contains(c.Addr)
		}
		if r.Verdict == Allow && host && (c.Protocol == DNS || slices.Contains(r.Ports, c.Port)) {
			return true
		}
	}
	return false
}
