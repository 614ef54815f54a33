package workspace

// rule is one line of the table of dangerous paths. A pattern is matched against the end of a path, at any depth, because a folder of several
// projects, or a nested one, is opened by the same tools; "*" stands for part of one component, and a last component "**" for the directory itself
// and everything in it. Letter case, and what other file systems ignore in names, does not count: a colleague's may do so.
type rule struct {
	pattern string
	reason  string   // what an attacker gains
	except  []string // last components that are harmless
	// root says that the file has effect only at the root of a repository, so that a copy in a dependency (node_modules) means nothing.
	root bool
}

const (
	gitRuns   = "git runs programs that it names"
	ciRuns    = "runs on the build servers, with their secrets, when pushed"
	agentRuns = "instructs or configures AI agents on the host: commands, hooks, permissions"
	editRuns  = "the editor runs commands from it when the folder is opened"
	shellRuns = "the shell runs it"
	envLoads  = "loaded into the environment of tools, where variables run programs"
	toolRuns  = "the tool runs programs or takes packages from places that it names"
	loginData = "holds or redirects login data"
)

// rules returns the table. What is not in it, and why: Makefile, package.json, build.rs, conftest.py and the rest of a project's own code run when
// a person builds or tests the project. No table can tell good from bad there; the diff is for that. .gitattributes and .editorconfig only choose
// among what is configured elsewhere, and .tool-versions among installed tools.
func rules() []rule {
	return []rule{
		// Inside .git, gitSafe lists what may change; all else there is set apart by judge. These are outside.
		{pattern: ".git/**", reason: gitRuns},
		{pattern: ".gitmodules", reason: "git fetches submodules from there and checks out what it says"},
		{pattern: ".gitconfig", reason: gitRuns},
		{pattern: ".githooks/**", reason: "git hooks, where configured: run at commit and checkout"},
		{pattern: ".husky/**", reason: "git hooks, run at commit and checkout"},
		{pattern: ".pre-commit-config.yaml", reason: "git hooks, fetched and run at commit"},
		{pattern: ".pre-commit-config.yml", reason: "git hooks, fetched and run at commit"},
		{pattern: "lefthook.y*ml", reason: "git hooks, run at commit"},
		{pattern: ".lefthook.y*ml", reason: "git hooks, run at commit"},
		{pattern: "lefthook-local.y*ml", reason: "git hooks, run at commit"},
		{pattern: ".lefthook/**", reason: "git hooks, run at commit"},
		{pattern: ".overcommit.yml", reason: "git hooks, run at commit"},
		{pattern: ".hg/**", reason: "Mercurial runs hooks that it names"},
		{pattern: ".svn/**", reason: "Subversion reads its working copy's state there"},
		{pattern: ".jj/**", reason: "Jujutsu runs programs that it names"},

		{pattern: ".github/workflows/**", reason: ciRuns, root: true},
		{pattern: ".github/actions/**", reason: ciRuns, root: true},
		{pattern: ".gitea/workflows/**", reason: ciRuns, root: true},
		{pattern: ".forgejo/workflows/**", reason: ciRuns, root: true},
		{pattern: ".forgejo/actions/**", reason: ciRuns, root: true},
		{pattern: ".gitlab-ci.yml", reason: ciRuns, root: true},
		{pattern: ".gitlab/ci/**", reason: ciRuns, root: true},
		{pattern: ".circleci/**", reason: ciRuns, root: true},
		{pattern: ".buildkite/**", reason: ciRuns, root: true},
		{pattern: "jenkinsfile*", reason: ciRuns, root: true},
		{pattern: ".woodpecker*", reason: ciRuns, root: true},
		{pattern: ".woodpecker/**", reason: ciRuns, root: true},
		{pattern: ".drone.y*ml", reason: ciRuns, root: true},
		{pattern: ".drone.star", reason: ciRuns, root: true},
		{pattern: "azure-pipelines*.y*ml", reason: ciRuns, root: true},
		{pattern: ".azure-pipelines/**", reason: ciRuns, root: true},
		{pattern: "bitbucket-pipelines.yml", reason: ciRuns, root: true},
		{pattern: ".travis.yml", reason: ciRuns, root: true},
		{pattern: "appveyor.yml", reason: ciRuns, root: true},
		{pattern: ".appveyor.yml", reason: ciRuns, root: true},
		{pattern: ".cirrus.y*ml", reason: ciRuns, root: true},
		{pattern: ".cirrus.star", reason: ciRuns, root: true},
		{pattern: ".builds/**", reason: ciRuns, root: true},
		{pattern: ".build.yml", reason: ciRuns, root: true},
		{pattern: ".semaphore/**", reason: ciRuns, root: true},
		{pattern: ".teamcity/**", reason: ciRuns, root: true},

		{pattern: ".claude/**", reason: agentRuns},
		{pattern: ".claude.json", reason: agentRuns},
		{pattern: "claude.md", reason: agentRuns},
		{pattern: "claude.*.md", reason: agentRuns},
		{pattern: "agents.md", reason: agentRuns},
		{pattern: "agents.*.md", reason: agentRuns},
		{pattern: "gemini.md", reason: agentRuns},
		{pattern: ".mcp.json", reason: agentRuns},
		{pattern: "mcp.json", reason: agentRuns},
		{pattern: ".cursor/**", reason: agentRuns},
		{pattern: ".cursorrules", reason: agentRuns},
		{pattern: ".windsurf*", reason: agentRuns},
		{pattern: ".windsurf/**", reason: agentRuns},
		{pattern: ".codex/**", reason: agentRuns},
		{pattern: ".gemini/**", reason: agentRuns},
		{pattern: ".agents/**", reason: agentRuns},
		{pattern: ".aider*", reason: agentRuns},
		{pattern: ".continue/**", reason: agentRuns},
		{pattern: ".continuerc*", reason: agentRuns},
		{pattern: ".clinerules", reason: agentRuns},
		{pattern: ".clinerules/**", reason: agentRuns},
		{pattern: ".roorules*", reason: agentRuns},
		{pattern: ".roomodes", reason: agentRuns},
		{pattern: ".roo/**", reason: agentRuns},
		{pattern: ".kiro/**", reason: agentRuns},
		{pattern: ".amazonq/**", reason: agentRuns},
		{pattern: ".opencode/**", reason: agentRuns},
		{pattern: "opencode.json*", reason: agentRuns},
		{pattern: ".goosehints", reason: agentRuns},
		{pattern: ".github/copilot*", reason: agentRuns},
		{pattern: ".github/instructions/**", reason: agentRuns},
		{pattern: ".github/prompts/**", reason: agentRuns},
		{pattern: ".github/agents/**", reason: agentRuns},

		{pattern: ".vscode/**", reason: editRuns},
		{pattern: "*.code-workspace", reason: editRuns},
		{pattern: ".devcontainer/**", reason: editRuns},
		{pattern: ".devcontainer.json", reason: editRuns},
		{pattern: ".idea/**", reason: editRuns},
		{pattern: ".run/**", reason: editRuns},
		{pattern: ".fleet/**", reason: editRuns},
		{pattern: ".zed/**", reason: editRuns},
		{pattern: ".helix/**", reason: editRuns},
		{pattern: ".vim/**", reason: editRuns},
		{pattern: ".vimrc", reason: editRuns},
		{pattern: "_vimrc", reason: editRuns},
		{pattern: ".gvimrc", reason: editRuns},
		{pattern: ".nvimrc", reason: editRuns},
		{pattern: ".nvim.lua", reason: editRuns},
		{pattern: ".exrc", reason: editRuns},
		{pattern: ".lvimrc", reason: editRuns},
		{pattern: ".dir-locals*.el", reason: editRuns},
		{pattern: ".emacs", reason: editRuns},
		{pattern: "*.sublime-project", reason: editRuns},

		{pattern: ".envrc", reason: "direnv runs it when a shell enters the folder"},
		{pattern: ".direnv/**", reason: envLoads},
		{pattern: ".env", reason: envLoads},
		{pattern: ".env.*", reason: envLoads, except: []string{".env.example", ".env.sample", ".env.template", ".env.dist"}},
		{pattern: "mise.toml", reason: envLoads},
		{pattern: "mise.*.toml", reason: envLoads},
		{pattern: ".mise*", reason: envLoads},
		{pattern: ".mise/**", reason: envLoads},
		{pattern: "mise/config*.toml", reason: envLoads},
		{pattern: ".rtx.toml", reason: envLoads},
		{pattern: ".autoenv*", reason: shellRuns},
		{pattern: ".bashrc", reason: shellRuns},
		{pattern: ".bash_*", reason: shellRuns},
		{pattern: ".profile", reason: shellRuns},
		{pattern: ".zshrc", reason: shellRuns},
		{pattern: ".zshenv", reason: shellRuns},
		{pattern: ".zprofile", reason: shellRuns},
		{pattern: ".zlogin", reason: shellRuns},
		{pattern: ".inputrc", reason: shellRuns},
		{pattern: ".gdbinit", reason: "the debugger runs it"},
		{pattern: ".lldbinit", reason: "the debugger runs it"},
		{pattern: ".pdbrc", reason: "Python's debugger runs it"},
		{pattern: ".pdbrc.py", reason: "Python's debugger runs it"},
		{pattern: ".rprofile", reason: "R runs it at every start here"},
		{pattern: ".renviron", reason: envLoads},
		{pattern: ".irbrc", reason: "Ruby's console runs it"},
		{pattern: ".pryrc", reason: "Ruby's console runs it"},
		{pattern: ".ghci", reason: "Haskell's console runs it"},
		{pattern: ".iex.exs", reason: "Elixir's console runs it"},
		{pattern: ".ocamlinit", reason: "OCaml's console runs it"},
		{pattern: ".jupyter/**", reason: "Jupyter runs it as Python"},
		{pattern: ".tmux.conf", reason: "the terminal multiplexer runs commands from it"},

		{pattern: ".npmrc", reason: toolRuns},
		{pattern: ".pnpmfile.*", reason: toolRuns},
		{pattern: ".yarnrc*", reason: toolRuns},
		{pattern: ".yarn/releases/**", reason: "yarn runs itself from there"},
		{pattern: ".yarn/plugins/**", reason: "yarn runs plugins from there"},
		{pattern: ".pnp.*", reason: "node runs it before everything else"},
		{pattern: "bunfig.toml", reason: toolRuns},
		{pattern: ".bunfig.toml", reason: toolRuns},
		{pattern: "pip.conf", reason: toolRuns},
		{pattern: "pip.ini", reason: toolRuns},
		{pattern: ".pypirc", reason: loginData},
		{pattern: ".cargo/config", reason: toolRuns},
		{pattern: ".cargo/config.toml", reason: toolRuns},
		{pattern: "rust-toolchain", reason: "cargo and rustc are taken from the place that it names"},
		{pattern: "rust-toolchain.toml", reason: "cargo and rustc are taken from the place that it names"},
		{pattern: ".bundle/config", reason: toolRuns},
		{pattern: ".bazelrc", reason: toolRuns},
		{pattern: ".bazeliskrc", reason: "Bazel is fetched from the place that it names"},
		{pattern: "tools/bazel", reason: "runs in place of Bazel"},
		{pattern: "tools/bazel.bat", reason: "runs in place of Bazel"},
		{pattern: "tools/bazel.exe", reason: "runs in place of Bazel"},
		{pattern: "tools/bazel.ps1", reason: "runs in place of Bazel"},
		{pattern: ".buckconfig", reason: toolRuns},
		{pattern: ".buckconfig.local", reason: toolRuns},
		{pattern: ".buckconfig.d/**", reason: toolRuns},
		{pattern: ".mvn/**", reason: toolRuns},
		{pattern: "cofferdam.yaml", reason: "is the policy of later runs here"},
		{pattern: "cofferdam.yml", reason: "is the policy of later runs here"},
		{pattern: ".cofferdam/**", reason: "is the policy of later runs here"},

		// For workspaces that are, or contain, a home directory.
		{pattern: ".ssh/**", reason: loginData},
		{pattern: ".gnupg/**", reason: loginData},
		{pattern: ".netrc", reason: loginData},
		{pattern: ".aws/**", reason: loginData},
		{pattern: ".kube/**", reason: loginData},
		{pattern: ".docker/**", reason: loginData},
		{pattern: ".config/git/**", reason: gitRuns},
		{pattern: ".config/fish/**", reason: shellRuns},
		{pattern: ".config/autostart/**", reason: "runs at login"},
		{pattern: ".config/systemd/**", reason: "runs at login"},
		{pattern: ".local/bin/**", reason: "lies in the search path of the shell"},
	}
}

// gitSafe lists what git itself changes below a .git directory when work is committed, and which names no program. Everything else there is set
// apart: a list of the bad files would be one release of git behind.
func gitSafe() []string {
	return []string{
		"head", "index", "packed-refs", "shallow", "objects", "objects/**", "refs", "refs/**", "logs", "logs/**",
		"orig_head", "fetch_head", "merge_head", "cherry_pick_head", "revert_head", "auto_merge",
		"commit_editmsg", "merge_msg", "merge_mode", "merge_rr", "squash_msg", "tag_editmsg", "gc.log",
	}
}

// gitUnsafe takes back from gitSafe: alternates make git read object stores elsewhere.
func gitUnsafe() []string {
	return []string{"objects/info/alternates", "objects/info/http-alternates"}
}

const (
	reasonNewRepo   = "a new repository inside the workspace: git runs programs that its configuration names"
	reasonGitGone   = "takes the repository apart"
	reasonBareRepo  = "lies in what git takes for a repository: it runs programs that the configuration there names"
	reasonLinkOut   = "a symlink that leads out of the workspace: what is later written through it lands elsewhere"
	reasonLinkVague = "a symlink that climbs up after going down: where it leads depends on other links"
	reasonLinkTo    = "a symlink to "
	reasonLinkOver  = "a symlink in the place of a folder for "
	reasonUsed      = "stands for something that is set apart, by "
)
