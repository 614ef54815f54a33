package policy

// ProtectedFile is one entry of the list of files that a push must leave as they are, where a profile does not list its own.
type ProtectedFile struct {
	Pattern string
	Reason  string // what changing it means
}

const (
	ownersApprove = "says whose approval a change needs"
	ciRuns        = "runs on the build servers, with their secrets, when pushed"
	agentsRead    = "instructs or configures AI agents of whoever works on the repository next"
	hooksRun      = "runs on the machine of whoever commits next"
	editorsRun    = "runs on the machine of whoever opens the folder next"
)

// DefaultProtectedFiles returns the built-in list. What is not in it, and why: a project's own code, build files and dependencies. They run too,
// but to change them is what agents are for; reviews are for that.
func DefaultProtectedFiles() []ProtectedFile {
	return []ProtectedFile{
		{".github/workflows/", ciRuns},
		{".github/actions/", ciRuns},
		{".gitea/workflows/", ciRuns},
		{".gitea/actions/", ciRuns},
		{".forgejo/workflows/", ciRuns},
		{".forgejo/actions/", ciRuns},
		{".gitlab-ci*.yml", ciRuns},
		{".gitlab/ci/", ciRuns},
		{".circleci/", ciRuns},
		{".buildkite/", ciRuns},
		{"**/Jenkinsfile*", ciRuns},
		{".woodpecker*", ciRuns},
		{".drone.*", ciRuns},
		{"azure-pipelines*", ciRuns},
		{".azure-pipelines/", ciRuns},
		{"bitbucket-pipelines.yml", ciRuns},
		{".travis.yml", ciRuns},
		{"appveyor.yml", ciRuns},
		{".appveyor.yml", ciRuns},
		{".cirrus.*", ciRuns},
		{".builds/", ciRuns},
		{".build.yml", ciRuns},
		{".semaphore/", ciRuns},
		{".teamcity/", ciRuns},
		{"buildspec*.yml", ciRuns},
		{"cloudbuild*.yaml", ciRuns},
		{".tekton/", ciRuns},
		{".zuul*", ciRuns},
		{"zuul*.yaml", ciRuns},
		{".gitlab/agents/", "connects clusters to the repository"},
		{".github/settings.yml", "changes the repository's settings, branch protection among them"},
		{".mergify.yml", "merges by itself what fits its rules"},
		{".github/dependabot.yml", "says which packages are fetched from where, with the repository's rights"},

		{"CODEOWNERS", ownersApprove},
		{"docs/CODEOWNERS", ownersApprove},
		{"**/OWNERS", ownersApprove},
		{".github/CODEOWNERS", ownersApprove},
		{".gitlab/CODEOWNERS", ownersApprove},
		{".gitea/CODEOWNERS", ownersApprove},
		{".forgejo/CODEOWNERS", ownersApprove},

		{"**/AGENTS*.md", agentsRead},
		{"**/CLAUDE*.md", agentsRead},
		{"**/GEMINI.md", agentsRead},
		{"**/.claude/", agentsRead},
		{"**/.mcp.json", agentsRead},
		{"**/.cursor/", agentsRead},
		{"**/.cursorrules", agentsRead},
		{"**/.windsurf*", agentsRead},
		{"**/.codex/", agentsRead},
		{"**/.gemini/", agentsRead},
		{"**/.agents/", agentsRead},
		{"**/.aider*", agentsRead},
		{"**/.continue*", agentsRead},
		{"**/.clinerules/", agentsRead},
		{"**/.roo*", agentsRead},
		{"**/.kiro/", agentsRead},
		{"**/.amazonq/", agentsRead},
		{"**/.opencode/", agentsRead},
		{"**/opencode.json*", agentsRead},
		{"**/.goosehints", agentsRead},
		{".github/copilot*", agentsRead},
		{".github/instructions/", agentsRead},
		{".github/prompts/", agentsRead},
		{".github/agents/", agentsRead},
		{".github/chatmodes/", agentsRead},
		{"cofferdam.yaml", "is the policy of later runs in the folder"},

		{".githooks/", hooksRun},
		{".husky/", hooksRun},
		{".pre-commit-config.y*ml", hooksRun},
		{".pre-commit-hooks.yaml", hooksRun},
		{"lefthook*", hooksRun},
		{".lefthook*", hooksRun},
		{".overcommit.yml", hooksRun},

		{"**/.vscode/", editorsRun},
		{"**/.idea/", editorsRun},
		{"**/.devcontainer*", editorsRun},
		{"**/.envrc", editorsRun},
	}
}
