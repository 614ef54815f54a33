package preset

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// git allows the http and https remotes of the workspace's repository, as git would rewrite them.
func (b *builder) git(ctx context.Context) error {
	config, err := b.gitConfigFile(ctx)
	if err != nil {
		return err
	}
	var entries []gitEntry
	if config != "" {
		entries, err = b.gitEntries(ctx, "--file", config)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return b.unsupported(nil, "git is not installed here, so the remotes are not known")
	}
	if err != nil {
		return b.unsupported(err, "the configuration of the workspace's repository cannot be read")
	}
	system := b.gitSettings(ctx, "--system") // visible inside
	user := b.gitSettings(ctx, "--global")   // masked inside
	passed := gitRewrites(user).passable()
	if config != "" {
		b.gitRemotes(entries, slices.Concat(passed, gitRewrites(system), gitRewrites(entries)))
	}
	b.gitPass(passed)
	b.gitTransport(user)
	b.gitTransport(system)
	b.caEnv("GIT_SSL_CAINFO")
	return nil
}

// gitRemotes allows each address for fetching and for pushing of each remote, as git inside will rewrite it.
func (b *builder) gitRemotes(entries []gitEntry, rewrites gitRewriteList) {
	pushed, found := map[string]bool{}, false
	for _, e := range entries {
		if name, push, ok := remoteKey(e.key); ok && push {
			pushed[name] = true
		}
	}
	for _, e := range entries {
		name, push, ok := remoteKey(e.key)
		if !ok {
			continue
		}
		found = true
		b.gitRemote(name, rewrites.apply(e.value, push))
		if !pushed[name] {
			b.gitRemote(name, rewrites.apply(e.value, true))
		}
	}
	if !found {
		b.note("the repository of the workspace has no remotes: nothing is allowed")
	}
}

// gitEntry is one setting; sections and the last part of the key are in lower case.
type gitEntry struct{ key, value string }

// gitEntries reads the settings for remotes, addresses and transport of one configuration.
func (b *builder) gitEntries(ctx context.Context, where ...string) ([]gitEntry, error) {
	args := append([]string{"config", "--null"}, where...)
	out, err := b.host.run(ctx, "git", append(args, "--get-regexp", `^(remote|url|http)\.`)...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		return nil, nil // nothing matches, or there is no such file
	}
	if err != nil {
		return nil, err
	}
	var entries []gitEntry
	for item := range strings.SplitSeq(string(out), "\x00") {
		if key, value, ok := strings.Cut(item, "\n"); ok {
			entries = append(entries, gitEntry{key, value})
		}
	}
	return entries, nil
}

// gitSettings reads the settings of the machine or of the user. Where they cannot be read there is a note.
func (b *builder) gitSettings(ctx context.Context, scope string) []gitEntry {
	entries, err := b.gitEntries(ctx, "--includes", scope)
	if err != nil {
		b.note("git's %s settings cannot be read", strings.TrimPrefix(scope, "--"))
	}
	return entries
}

// remoteKey takes remote.NAME.url and remote.NAME.pushurl apart.
func remoteKey(key string) (name string, push, ok bool) {
	rest, ok := strings.CutPrefix(key, "remote.")
	i := strings.LastIndexByte(rest, '.')
	if !ok || i < 0 {
		return "", false, false
	}
	last := rest[i+1:]
	return rest[:i], last == "pushurl", last == "url" || last == "pushurl"
}

// gitRemote allows one address of a remote.
func (b *builder) gitRemote(name, address string) {
	scheme, rest, isURL := strings.Cut(address, "://")
	switch {
	case isURL && (strings.EqualFold(scheme, "http") || strings.EqualFold(scheme, "https")):
		b.addURL(fmt.Sprintf("the remote %s", name), strings.ToLower(scheme)+"://"+rest)
	case isURL && slices.Contains([]string{"ssh", "git+ssh", "ssh+git"}, strings.ToLower(scheme)):
		b.sshNote(name, rest)
	case isURL && strings.EqualFold(scheme, "file"), !isURL && !scpLike(address):
		b.note("the remote %s is a path on this machine: nothing crosses for it", name)
	case isURL:
		b.note("the remote %s uses %.20q, which is not passed through: use https", name, scheme)
	default:
		host, path, _ := strings.Cut(address, ":")
		b.sshNote(name, host+"/"+path)
	}
}

// scpLike says whether git reads the address as HOST:PATH.
func scpLike(address string) bool {
	colon := strings.IndexByte(address, ':')
	slash := strings.IndexByte(address, '/')
	return colon > 0 && (slash < 0 || colon < slash)
}

// sshNote says how a remote over SSH becomes one over https. rest is [USER@]HOST[:PORT]/PATH.
func (b *builder) sshNote(name, rest string) {
	host, path, _ := strings.Cut(rest, "/")
	host = host[strings.LastIndexByte(host, '@')+1:]
	if before, _, found := strings.Cut(host, ":"); found && !strings.HasPrefix(host, "[") {
		host = before
	}
	b.note("the remote %s uses SSH, for which the sandbox has no key: use https with --allow %s:443 and git remote set-url %s https://%s/%s",
		name, host, name, host, strings.TrimPrefix(path, "/"))
}

// gitRewrite is url.BASE.insteadOf = PREFIX.
type gitRewrite struct {
	base, prefix string
	push         bool // pushInsteadOf
}

type gitRewriteList []gitRewrite

func gitRewrites(entries []gitEntry) gitRewriteList {
	var list gitRewriteList
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.key, "url.")
		i := strings.LastIndexByte(rest, '.')
		if !ok || i < 0 || e.value == "" {
			continue
		}
		if last := rest[i+1:]; last == "insteadof" || last == "pushinsteadof" {
			list = append(list, gitRewrite{base: rest[:i], prefix: e.value, push: last == "pushinsteadof"})
		}
	}
	return list
}

// apply rewrites an address as git does: the longest prefix wins, and for pushing pushInsteadOf comes first.
func (l gitRewriteList) apply(address string, push bool) string {
	for _, forPush := range []bool{true, false} {
		if forPush && !push {
			continue
		}
		best := gitRewrite{}
		for _, r := range l {
			if r.push == forPush && strings.HasPrefix(address, r.prefix) && len(r.prefix) > len(best.prefix) {
				best = r
			}
		}
		if best.prefix != "" {
			return best.base + address[len(best.prefix):]
		}
	}
	return address
}

// passable returns the rewrites that are of use inside: to http and https. One to SSH, for which there is no key inside, is left out, so that
// an address in https is used as it stands.
func (l gitRewriteList) passable() gitRewriteList {
	return slices.DeleteFunc(slices.Clone(l), func(r gitRewrite) bool {
		_, err := parseAddress(r.base)
		return err != nil
	})
}

// gitPass hands the user's rewriting of addresses to git inside, where the user's configuration is masked.
func (b *builder) gitPass(rewrites gitRewriteList) {
	for i, r := range rewrites {
		a, err := parseAddress(r.base)
		if err != nil {
			continue // passable has checked it
		}
		if a.creds {
			b.note("git rewrites addresses to %s with a user or password: credentials are not passed into the sandbox", a.allow())
		}
		last := ".insteadOf"
		if r.push {
			last = ".pushInsteadOf"
		}
		b.env(fmt.Sprintf("GIT_CONFIG_KEY_%d", i), "url."+a.clean+last)
		b.env(fmt.Sprintf("GIT_CONFIG_VALUE_%d", i), r.prefix)
	}
	if len(rewrites) > 0 {
		b.env("GIT_CONFIG_COUNT", strconv.Itoa(len(rewrites)))
	}
}

// gitTransport looks at settings that change how git connects.
func (b *builder) gitTransport(entries []gitEntry) {
	for _, e := range entries {
		switch {
		case e.key == "http.proxy":
			b.proxyNote("git", e.value)
		case e.key == "http.sslcainfo":
			b.caFile("GIT_SSL_CAINFO", e.value)
		case strings.HasSuffix(e.key, ".extraheader"):
			b.note("git has an extra header for a server: credentials are not passed into the sandbox")
		}
	}
}
