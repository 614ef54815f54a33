// isomorphic-git as a program. Usage: node isomorphic.cjs clone|shallow DIR URL; fetch DIR; push DIR REFSPEC...
// The library is searched for in the folder CLIENT_MODULES; it has one ref a push.
const path = require("path"), fs = require("fs")
const lib = path.join(process.env.CLIENT_MODULES, "isomorphic-git")
const git = require(lib), http = require(path.join(lib, "http/node"))
const [op, dir, ...rest] = process.argv.slice(2)
const common = {
	fs, http, dir,
	onMessage: text => process.stdout.write("message: " + text),
	onAuth: () => ({ username: process.env.CLIENT_USER, password: process.env.CLIENT_PASSWORD }),
	onAuthFailure: () => ({ cancel: true }),
}
async function main() {
	switch (op) {
	case "clone": return git.clone({ ...common, url: rest[0] })
	case "shallow": return git.clone({ ...common, url: rest[0], depth: 1, singleBranch: true })
	case "fetch": return git.fetch({ ...common, remote: "origin" })
	case "push":
		for (const spec of rest) {
			const force = spec.startsWith("+"), [from, to] = spec.replace(/^\+/, "").split(":")
			const result = from === "" ? await git.push({ ...common, remote: "origin", remoteRef: to, ref: "work", delete: true })
				: await git.push({ ...common, remote: "origin", ref: from, remoteRef: to, force })
			console.log(JSON.stringify(result.refs))
		}
		return
	}
	throw new Error("usage")
}
main().catch(e => { console.log(e.code + ": " + e.message + " " + JSON.stringify(e.data)); process.exit(1) })
