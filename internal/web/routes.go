package web

import (
	"context"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/auth"
	"github.com/cofferdam/cofferdam/internal/control"
)

// operations is what the pages need of package control; *control.Service has it. Each file with pages declares its own part, so that a test can show a
// page with what it wants shown.
type operations interface {
	Me(ctx context.Context, a control.Actor) (api.Me, error)
	Counts(ctx context.Context, a control.Actor) (control.Counts, error)
	agentOperations
	sandboxOperations
	workspaceOperations
	reviewOperations
	policyOperations
	credentialOperations
	gitOperations
	auditOperations
	userOperations
	accountOperations
	signInOperations
	serverOperations
}

// routes is every page. What is not here is not found.
func (p *Pages) routes() {
	p.mux.HandleFunc("GET /static/{hash}/{name...}", p.static)
	p.open()
	p.workRoutes()
	p.ruleRoutes()
	p.peopleRoutes()
	p.mux.HandleFunc("/", p.signedIn(p.notFound))
}

// open are the pages for people who have not signed in.
func (p *Pages) open() {
	for pattern, h := range map[string]handler{
		"GET /sign-in": p.signInPage, "POST /sign-in": p.signIn, "GET /sign-in/code": p.codePage, "POST /sign-in/code": p.signInCode, "POST /sign-out": p.signOut,
		"POST /sign-in/passkey/{step}/begin": p.passkeyBegin, "POST /sign-in/passkey/{step}/finish": p.passkeyFinish,
		"POST /sign-in/oidc/{id}": p.oidcBegin, "GET " + auth.CallbackPath("{id}"): p.oidcCallback,
		"GET " + auth.SetupPath: p.setupPage, "POST " + auth.SetupPath: p.setup, "GET " + auth.ResetPath: p.resetPage, "POST " + auth.ResetPath: p.reset,
		"GET " + auth.InvitationPath: p.invitationPage, "POST " + auth.InvitationPath: p.invitation,
	} {
		p.mux.HandleFunc(pattern, p.anyone(h))
	}
}

// workRoutes are agents and what runs.
func (p *Pages) workRoutes() {
	for pattern, h := range map[string]handler{
		"GET /{$}": p.overview, "GET /counts": p.counts,
		"GET /agents": p.agents, "GET /agents/new": p.newAgentPage, "POST /agents": p.newAgent, "GET /agents/{id}": p.agent,
		"GET /agents/{id}/edit": p.editAgentPage, "POST /agents/{id}/edit": p.editAgent, "POST /agents/{id}/suspend": p.suspendAgent, "POST /agents/{id}/delete": p.deleteAgent,
		"GET /sandboxes": p.sandboxes, "GET /sandboxes/new": p.newSandboxPage, "POST /sandboxes": p.newSandbox, "GET /sandboxes/{id}": p.sandbox,
		"GET /sandboxes/{id}/output": p.output, "GET /sandboxes/{id}/terminal": p.terminal, "GET /sandboxes/{id}/trace": p.trace, "GET /sandboxes/{id}/runs": p.runs,
		"GET /sandboxes/{id}/files": p.files, "GET /sandboxes/{id}/download": p.download, "POST /sandboxes/{id}/upload": p.upload,
		"POST /sandboxes/{id}/pause": p.pauseSandbox, "POST /sandboxes/{id}/resume": p.resumeSandbox,
		"POST /sandboxes/{id}/stop": p.stopSandbox, "POST /sandboxes/{id}/extend": p.extendSandbox,
		"GET /workspaces": p.workspaces, "POST /workspaces": p.newWorkspace, "POST /workspaces/{id}/delete": p.deleteWorkspace,
	} {
		p.mux.HandleFunc(pattern, p.signedIn(h))
	}
}

// ruleRoutes are what decides about crossings.
func (p *Pages) ruleRoutes() {
	for pattern, h := range map[string]handler{
		"GET /review": p.review, "GET /review/denials/{id}": p.denial, "POST /review/denials/{id}": p.decideDenial,
		"GET /review/approvals/{id}": p.approval, "POST /review/approvals/{id}": p.decideApproval, "POST /review/check": p.checkRule,
		"GET /rules": p.rules, "POST /rules/{id}/approve": p.approveRule, "POST /rules/{id}/revoke": p.revokeRule,
		"GET /policies": p.policies, "GET /policies/new": p.newPolicyPage, "POST /policies": p.newPolicy, "GET /policies/{id}": p.policy, "POST /policies/{id}": p.changePolicy,
		"GET /policies/{id}/versions": p.policyVersions, "GET /policies/{id}/versions/{number}": p.policyVersion, "POST /policies/{id}/delete": p.deletePolicy,
		"POST /policies/check": p.checkPolicy, "POST /policies/explain": p.explainPolicy, "POST /policies/{id}/replay": p.replayPolicy,
		"GET /credentials": p.credentials, "GET /credentials/new": p.newCredentialPage, "POST /credentials": p.newCredential, "GET /credentials/{name}": p.credential,
		"POST /credentials/{name}/rotate": p.rotateCredential, "POST /credentials/{name}/delete": p.deleteCredential,
		"GET /git": p.git, "GET /git/upstreams/{id}": p.upstreamPage, "POST /git/upstreams/{id}": p.saveUpstream, "POST /git/upstreams/{id}/delete": p.deleteUpstream,
		"GET /git/profiles/{id}": p.profilePage, "POST /git/profiles/{id}": p.saveProfile, "POST /git/profiles/{id}/delete": p.deleteProfile,
	} {
		p.mux.HandleFunc(pattern, p.signedIn(h))
	}
}

// peopleRoutes are records, people and the server.
func (p *Pages) peopleRoutes() {
	for pattern, h := range map[string]handler{
		"GET /audit": p.audit, "GET /audit/export": p.exportAudit, "POST /audit/queries": p.saveQuery, "POST /audit/queries/{id}/delete": p.deleteQuery,
		"GET /users": p.users, "GET /users/new": p.newUserPage, "POST /users": p.newUser, "GET /users/{id}": p.user, "POST /users/{id}": p.changeUser,
		"POST /users/{id}/reset": p.resetUser, "POST /users/{id}/delete": p.deleteUser,
		"GET /account": p.account, "POST /account/password": p.changePassword, "POST /account/totp": p.enrolTOTP, "POST /account/totp/confirm": p.confirmTOTP,
		"POST /account/totp/disable": p.disableTOTP, "POST /account/recovery": p.recoveryCodes,
		"POST /account/passkeys/begin": p.addPasskeyBegin, "POST /account/passkeys/finish": p.addPasskeyFinish, "POST /account/passkeys/{id}/delete": p.deletePasskey, "POST /account/sessions/{id}/revoke": p.revokeSession,
		"POST /account/tokens": p.newToken, "POST /account/tokens/{id}/revoke": p.revokeToken,
		"GET /settings": p.settings, "POST /settings": p.changeSettings, "GET /server": p.server, "POST /server/tenants": p.newTenant,
	} {
		p.mux.HandleFunc(pattern, p.signedIn(h))
	}
}
