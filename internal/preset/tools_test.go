package preset

import (
	"os"
	"testing"

	"github.com/cofferdam/cofferdam/internal/fault"
)

func TestNpm(t *testing.T) {
	checkCases(t, "@npm", []presetCase{
		{name: "mirror", tools: outputs{"npm config ls --json": `{"registry":"https://mirror.example.com/npm/","proxy":null,"https-proxy":false}`},
			allows: []string{"mirror.example.com:443"},
			envs:   []string{"npm_config_registry=https://mirror.example.com/npm/", "YARN_NPM_REGISTRY_SERVER=https://mirror.example.com/npm"}},
		{name: "scopes, credentials and a certificate file",
			files: map[string]string{
				"home/.npmrc": "; my settings\n@acme:registry = \"https://u:s3cret@npm.example.org:8443/\"\n//npm.example.org/:_authToken=s3cret\n" +
					"@My_Co:registry=http://other.example.com\n@gone:registry=https://${UNSET}/\n@set:registry=https://${SET}/\n",
				"etc/npmrc":      "@acme:registry=https://loses.example.com\n@ours:registry=https://ours.example.com/\n",
				"etc/ssl/ca.crt": "x",
			},
			env: map[string]string{"SET": "set.example.com"},
			tools: outputs{"npm *": `{"registry":"https://u:s3cret@mirror.example.com/","cafile":"/etc/ssl/ca.crt","https-proxy":"http://u:s3cret@proxy.example.com:3128",
				"userconfig":"$ROOT/home/.npmrc","globalconfig":"$ROOT/etc/npmrc"}`},
			allows: []string{"mirror.example.com:443", "other.example.com:80", "npm.example.org:8443", "ours.example.com:443", "set.example.com:443"},
			envs: []string{"npm_config_registry=https://mirror.example.com/", "YARN_NPM_REGISTRY_SERVER=https://mirror.example.com", "npm_config_@acme:registry=https://npm.example.org:8443/",
				"npm_config_@ours:registry=https://ours.example.com/", "npm_config_@set:registry=https://set.example.com/", "npm_config_cafile=/etc/ssl/ca.crt"},
			notes: []string{"npm's registry has a user or password", "cannot be set by a variable: put @My_Co:registry=http://other.example.com", "npm's registry for @acme has a user or password",
				"npm has credentials", "web proxy proxy.example.com:3128"}},
		{name: "the workspace cannot widen",
			files:  map[string]string{"work/.npmrc": "registry=https://evil.example.org/\n@x:registry=https://evil.example.net\n@y:registry=https://mirror.example.com/y\n"},
			tools:  outputs{"npm *": `{"registry":"https://mirror.example.com/"}`},
			allows: []string{"mirror.example.com:443"},
			notes:  []string{"sets @x:registry to a host that is not allowed: if you trust it, add --allow evil.example.net:443", "--allow evil.example.org:443"}},
		{name: "npm absent, files tell", files: map[string]string{"home/.npmrc": "registry=https://mirror.example.com/\ncafile=/home/ca.crt"},
			allows: []string{"mirror.example.com:443"},
			envs:   []string{"npm_config_registry=https://mirror.example.com/", "YARN_NPM_REGISTRY_SERVER=https://mirror.example.com"},
			notes:  []string{"certificate file /home/ca.crt is not visible inside"}},
		{name: "npm absent, variable tells", env: map[string]string{"NPM_CONFIG_REGISTRY": "http://mirror.example.com:8081"},
			allows: []string{"mirror.example.com:8081"},
			envs:   []string{"npm_config_registry=http://mirror.example.com:8081", "YARN_NPM_REGISTRY_SERVER=http://mirror.example.com:8081"}},
		{name: "npm absent, nobody tells", fault: fault.Unsupported},
		{name: "npm fails", tools: outputs{"npm *": "FAIL broken"}, fault: fault.Unsupported},
		{name: "npm babbles", tools: outputs{"npm *": "hello"}, fault: fault.Unsupported},
	})
}

func TestGo(t *testing.T) {
	checkCases(t, "@go", []presetCase{
		{name: "proxy and sums",
			tools: outputs{"go *": `{"GOPROXY":"https://u:s3cret@goproxy.example.com/x,https://two.example.com|direct","GOSUMDB":"sum.example.org+abc+key","GOFLAGS":"-mod=mod","GOTOOLCHAIN":"local",
				"GONOSUMDB":"","GOPRIVATE":"git.example.com/*","GONOPROXY":"git.example.com/*"}`},
			allows: []string{"goproxy.example.com:443", "two.example.com:443", "sum.example.org:443"},
			envs: []string{"GOPROXY=https://goproxy.example.com/x,https://two.example.com|direct", "GOSUMDB=sum.example.org+abc+key", "GONOPROXY=git.example.com/*",
				"GOPRIVATE=git.example.com/*", "GOFLAGS=-mod=mod", "GOTOOLCHAIN=local"},
			notes: []string{"module proxy has a user or password", "modules of git.example.com/* from their origin"}},
		{name: "sums through an address", tools: outputs{"go *": `{"GOPROXY":"goproxy.example.com","GOSUMDB":"sum.example.org https://u:s3cret@sums.example.com/db"}`},
			allows: []string{"goproxy.example.com:443", "sums.example.com:443"},
			envs:   []string{"GOPROXY=https://goproxy.example.com", "GOSUMDB=sum.example.org https://sums.example.com/db"},
			notes:  []string{"checksum database has a user or password"}},
		{name: "direct, no sums", tools: outputs{"go *": `{"GOPROXY":"direct","GOSUMDB":"off"}`}, envs: []string{"GOPROXY=direct", "GOSUMDB=off"}, notes: []string{"no module proxy"}},
		{name: "directory", tools: outputs{"go *": `{"GOPROXY":"file:///srv/mod,off","GOSUMDB":"off"}`}, envs: []string{"GOPROXY=file:///srv/mod,off", "GOSUMDB=off"}, notes: []string{"--mount"}},
		{name: "absent", fault: fault.Unsupported},
		{name: "fails", tools: outputs{"go *": "FAIL no"}, fault: fault.Unsupported},
	})
}

func TestPip(t *testing.T) {
	ask := "python3 -c " + pipDefaults
	checkCases(t, "@pip", []presetCase{
		{name: "defaults", tools: outputs{"pip config list": "", ask: "https://index.example.com/simple\nfiles.example.org\n"}, allows: []string{"index.example.com:443", "files.example.org:443"}},
		{name: "mirror",
			tools: outputs{"pip config list": "global.index-url='https://loses.example.com/simple'\ninstall.index-url='https://u:s3cret@mirror.example.com/simple'\n" +
				"global.extra-index-url='https://a.example.com/s\\nhttp://b.example.com:8080/s'\nglobal.cert='/etc/ssl/ca.crt'\n:env:.find-links='/opt/wheels'\nglobal.trusted-host='b.example.com'\n",
				ask: "https://index.example.com/simple\nfiles.example.org\n"},
			files:  map[string]string{"etc/ssl/ca.crt": "x"},
			allows: []string{"mirror.example.com:443", "a.example.com:443", "b.example.com:8080"},
			envs: []string{"PIP_INDEX_URL=https://mirror.example.com/simple", "UV_INDEX_URL=https://mirror.example.com/simple", "PIP_EXTRA_INDEX_URL=https://a.example.com/s http://b.example.com:8080/s",
				"PIP_FIND_LINKS=/opt/wheels", "PIP_TRUSTED_HOST=b.example.com", "PIP_CERT=/etc/ssl/ca.crt"},
			notes: []string{"pip's index has a user or password", "files on another host"}},
		{name: "default written out", tools: outputs{"pip3 config list": "global.index-url='https://index.example.com/simple/'", ask: "https://index.example.com/simple\nfiles.example.org\n"},
			allows: []string{"index.example.com:443", "files.example.org:443"},
			envs:   []string{"PIP_INDEX_URL=https://index.example.com/simple/", "UV_INDEX_URL=https://index.example.com/simple/"}},
		{name: "variable, pip absent", env: map[string]string{"PIP_INDEX_URL": "https://mirror.example.com/simple"},
			allows: []string{"mirror.example.com:443"},
			envs:   []string{"PIP_INDEX_URL=https://mirror.example.com/simple", "UV_INDEX_URL=https://mirror.example.com/simple"}, notes: []string{"files on another host"}},
		{name: "uv alone", env: map[string]string{"UV_DEFAULT_INDEX": "mine=https://uv.example.com/simple"}, files: map[string]string{"home/.config/uv/uv.toml": "[[index]]"},
			allows: []string{"uv.example.com:443"}, envs: []string{"UV_DEFAULT_INDEX=https://uv.example.com/simple"}, notes: []string{"uv.toml"}},
		{name: "absent", fault: fault.Unsupported},
		{name: "does not tell", tools: outputs{"pip *": ""}, fault: fault.Unsupported},
		{name: "fails", tools: outputs{"pip *": "FAIL no"}, fault: fault.Unsupported},
	})
}

func TestCargo(t *testing.T) {
	complaint := "FAIL error: download of config.json failed\n\nCaused by:\n  failed to download from `https://index.example.com/config.json`\n"
	cached := map[string]string{"home/.cargo/registry/index/index.example.com-0123456789abcdef/config.json": `{"dl":"https://static.example.com/crates","api":"https://example.com"}`,
		"home/.cargo/registry/index/evil.index.example.com-0123456789abcdef/config.json": `{"dl":"https://evil.example.org"}`}
	checkCases(t, "@cargo", []presetCase{
		{name: "used before", tools: outputs{"cargo *": complaint}, files: cached, allows: []string{"index.example.com:443", "static.example.com:443"}},
		{name: "never used", tools: outputs{"cargo *": complaint}, allows: []string{"index.example.com:443"}, notes: []string{"not known before the first use"}},
		{name: "replaced, and more registries", tools: outputs{"cargo *": complaint}, env: map[string]string{"CARGO_HOME": "$ROOT/c"},
			files: map[string]string{"etc/ssl/ca.crt": "x", "work/.cargo/config.toml": "[source.crates-io]",
				"c/registry/index/index.example.com-1/config.json": `{"dl":"https://static.example.com/{crate}/{version}"}`,
				"c/config.toml": "[source.crates-io]\nreplace-with = \"m\" # mirror\n[source.m]\nregistry = \"sparse+https://index.example.com/\"\n[registries]\nours-x.index = 'sparse+https://ours.example.com/i/'\n" +
					"[registries.\"git\"]\nindex = \"https://u:s3cret@git.example.com/i\"\n[http]\ncainfo = \"/etc/ssl/ca.crt\"\nproxy = \"http://p.example.com\"\n"},
			allows: []string{"index.example.com:443", "static.example.com:443", "ours.example.com:443", "git.example.com:443"},
			envs:   []string{"CARGO_REGISTRIES_OURS_X_INDEX=sparse+https://ours.example.com/i/", "CARGO_REGISTRIES_GIT_INDEX=https://git.example.com/i", "CARGO_HTTP_CAINFO=/etc/ssl/ca.crt"},
			notes:  []string{"registry git has a user or password", "web proxy p.example.com", "replaced sources from files only", "workspace's .cargo/config.toml"}},
		{name: "absent", fault: fault.Unsupported},
		{name: "says something else", tools: outputs{"cargo *": "FAIL error: no"}, fault: fault.Unsupported},
		{name: "succeeds against all reason", tools: outputs{"cargo *": ""}, fault: fault.Unsupported},
	})
}

func TestCargoLeavesNothing(t *testing.T) {
	h := host(t, nil, nil, nil)
	if _, err := Resolve(t.Context(), "@cargo", h); err == nil {
		t.Fatal("cargo is not there")
	}
	if left, err := os.ReadDir(h.Home + "/.cache"); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
}

func TestApt(t *testing.T) {
	checkCases(t, "@apt", []presetCase{
		{name: "lists",
			files: map[string]string{
				"etc/apt/sources.list": "# comment\ndeb http://deb.example.com/debian bookworm main # more\n  deb-src [arch=amd64 signed-by=/k.gpg]  https://src.example.com:8443/d  bookworm main\n" +
					"#deb http://off.example.com x y\nrpm http://no.example.com x\ndeb cdrom:[Disk]/ bookworm main\ndeb http://short.example.com\n",
				"etc/apt/sources.list.d/a.list":         "deb https://u:s3cret@priv.example.com/apt stable main\n",
				"etc/apt/sources.list.d/b.list.save":    "deb http://saved.example.com/ x y\n",
				"etc/apt/sources.list.d/c.sources":      "Types: deb\nURIs: http://one.example.com/debian\n  https://two.example.com/debian\nSuites: x\n\n# off\nEnabled: no\nURIs: http://disabled.example.com\n\nuris: http://deb.example.com/security\n",
				"etc/apt/sources.list.d/d.sources.d_is": "URIs: http://odd.example.com\n",
			},
			tools:  outputs{"apt-config dump Acquire": "Acquire::http::Proxy \"http://proxy.example.com:3142\";\nAcquire::http::Proxy::deb.example.com \"DIRECT\";\nAcquire::Retries \"3\";\n"},
			allows: []string{"deb.example.com:80", "src.example.com:8443", "priv.example.com:443", "one.example.com:80", "two.example.com:443"},
			notes:  []string{"user or password", "apt is set to use the web proxy proxy.example.com:3142"}},
		{name: "odd kinds", files: map[string]string{"etc/apt/sources.list": "deb mirror+https://list.example.com/m x y\ndeb tor+http://onion.example.com x y\ndeb file:/srv x y\n"},
			allows: []string{"list.example.com:443"}, notes: []string{"chooses among mirrors", `"tor+http"`}},
		{name: "none", fault: fault.Unsupported},
	})
}

func FuzzParsers(f *testing.F) {
	f.Add("deb [a=b] http://x.example.com y z\nURIs: http://x.example.com\n y\n\n[registries.a]\nindex = 'x'\n@a:registry=${B}\nglobal.x='y'")
	f.Add("[\n.=\n${\n'\nremote.a.url\ndeb [")
	f.Fuzz(func(t *testing.T, text string) {
		for _, uri := range append(parseSourcesList(text), parseDeb822(text)...) {
			if uri == "" {
				t.Fatal("an empty URI")
			}
		}
		for _, k := range parseCargoConfig(text) {
			if len(k.path) == 0 {
				t.Fatal("a key without a name")
			}
		}
		for key := range parseNpmrc(text, func(string) string { return "v" }) {
			if key == "" {
				t.Fatal("a setting without a name")
			}
		}
		parsePipConfig(text)
		parseAptProxies(text)
	})
}
