package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/confine"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/image"
)

// pullFlags are the flags of "image pull" as typed.
type pullFlags struct {
	reach      testFlags // the networks, pins and authorities of "credential test" mean the same here
	plainHTTP  string
	credential string
	maxSize    string
	maxFiles   int64
	bestEffort []string
	quiet      bool
	json       bool
}

func (a *app) newImagePullCommand() *cobra.Command {
	var f pullFlags
	cmd := &cobra.Command{
		Use:   "pull REF...",
		Short: "Pull images from their registries",
		Long: `Pull images from their registries, for this machine's platform. REF is REGISTRY/NAME:TAG, or REGISTRY/NAME@sha256:HEX for exactly one. Everything is verified
by its digest and bounded; a pull that fails leaves nothing. Before it reads the first byte from the network this process gives up its rights, for good.

A registry may send us on, for blobs and for tokens, but only by https and to public addresses, or into a network that you name.

  cofferdam image pull registry.example.org/team/tool:1.2
  cofferdam image pull registry.example.org/team/tool@sha256:3f9c...
  cofferdam image pull registry.example.org/team/tool --credential registry
  cofferdam image pull registry.lan:5000/tool --allow-network 10.0.0.0/8 --ca lan-ca.pem`,
		Args: someImages,
		RunE: func(cmd *cobra.Command, args []string) error { return a.pullImages(cmd.Context(), args, f) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.reach.networks, "allow-network", nil, "a private network, a `CIDR`, that registries and the places they name may be in, such as 10.0.0.0/8")
	flags.StringArrayVar(&f.reach.resolve, "resolve", nil, "take this address for a host: `HOST=ADDRESS`")
	flags.StringVar(&f.reach.roots, "ca", "", "trust the certificates in this PEM `FILE` too")
	flags.StringVar(&f.plainHTTP, "plain-http", "", "speak to this one `REGISTRY`, HOST or HOST:PORT, without TLS")
	flags.StringVar(&f.credential, "credential", "", "sign in with the credential `NAME`, which must be for the registry's host; see cofferdam credential")
	flags.StringVar(&f.maxSize, "max-size", "16g", "the `SIZE` that an image may have, as it is sent and when it is unpacked")
	flags.Int64Var(&f.maxFiles, "max-files", 2_000_000, "how many files, `N`, an image may have")
	flags.StringSliceVar(&f.bestEffort, "best-effort", nil, "go without `WHAT`: landlock, where this kernel has none")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print digests only")
	flags.BoolVar(&f.json, "json", false, "print JSON: what there is now")
	cmd.MarkFlagsMutuallyExclusive("quiet", "json")
	_ = cmd.MarkFlagFilename("ca", "pem", "crt")                                                                                        // fails only for an unknown flag
	_ = cmd.RegisterFlagCompletionFunc("best-effort", cobra.FixedCompletions([]string{"landlock"}, cobra.ShellCompDirectiveNoFileComp)) // likewise
	_ = cmd.RegisterFlagCompletionFunc("credential", a.completeNames)                                                                   // likewise
	return cmd
}

// pullImages pulls one image after another. All that needs files is opened before the process confines itself.
func (a *app) pullImages(ctx context.Context, args []string, f pullFlags) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	p := &imagePull{app: a, flags: f}
	defer p.close()
	if err := p.open(ctx, args); err != nil {
		return err
	}
	if err := p.confine(); err != nil {
		return err
	}
	list := []image.Image{}
	for _, ref := range p.refs {
		i, err := p.one(ctx, ref.String())
		if err != nil && ctx.Err() != nil {
			fmt.Fprintf(a.stderr, "cofferdam: interrupted; nothing of %s was kept\n", ref)
			return status(128 + int(syscall.SIGINT))
		}
		if err != nil {
			return errors.Join(err, a.tellPulled(list, f)) // those before it are here
		}
		list = append(list, i)
	}
	return a.tellPulled(list, f)
}

// tellPulled prints what there is now, for programs.
func (a *app) tellPulled(list []image.Image, f pullFlags) error {
	if !f.json {
		return nil
	}
	return a.writeJSON(list)
}

// imagePull is one call of "image pull".
type imagePull struct {
	app    *app
	flags  pullFlags
	refs   []image.Reference
	store  *image.Store
	log    *audit.Log
	signIn *registrySignIn // nil without --credential
	weaker []string        // what this kernel could not enforce
	o      image.PullOptions
}

// open parses what was typed and opens what is needed.
func (p *imagePull) open(ctx context.Context, args []string) error {
	for _, text := range args {
		ref, err := image.ParseReference(text)
		if err != nil {
			return err
		}
		p.refs = append(p.refs, ref)
	}
	if err := p.settle(); err != nil {
		return err
	}
	var err error
	if p.store, err = p.app.images(); err != nil {
		return err
	}
	if _, err := p.store.Sweep(); err != nil {
		return err
	}
	if p.log, err = audit.Open(p.app.auditDir()); err != nil {
		return err
	}
	if p.flags.credential == "" {
		return nil
	}
	if p.signIn, err = p.app.openSignIn(ctx, p.flags.credential, p.refs, p.o); err != nil {
		return err
	}
	p.o.Authorize = p.signIn.authorize
	return nil
}

// confine gives up what the rest of this process's life does not need.
func (p *imagePull) confine() error {
	write, place := p.store.Paths()
	err := confine.Image(confine.ImageConfig{WritePaths: write, PlacePath: place, BestEffort: slices.Contains(p.flags.bestEffort, "landlock")})
	if err != nil {
		return fault.New(fault.Unsupported, "this process cannot give up its rights, so it pulls nothing").WithHint("%s", fault.HintOf(err)).Because(err)
	}
	p.weaker = confine.ImageMissing()
	for _, what := range p.weaker {
		fmt.Fprintln(p.app.stderr, "cofferdam:", what)
	}
	return nil
}

func (p *imagePull) close() {
	if p.signIn != nil {
		_ = p.signIn.lender.Close() // it has only read
	}
	if p.log != nil {
		_ = p.log.Close() // every record was written whole
	}
}

// one pulls one image and tells about it.
func (p *imagePull) one(ctx context.Context, ref string) (image.Image, error) {
	o := p.o
	shown := p.newProgress(ref)
	o.Progress, o.Record = shown.update, p.record
	i, err := p.store.Pull(ctx, ref, o)
	shown.end()
	if err != nil {
		return i, err
	}
	return i, p.tell(i, ref)
}

// tell says what there is now.
func (p *imagePull) tell(i image.Image, ref string) error {
	if p.flags.json {
		return nil
	}
	if p.flags.quiet {
		_, err := fmt.Fprintln(p.app.stdout, i.Digest)
		return err
	}
	fmt.Fprintf(p.app.stdout, "%s  %s  %s\n", ref, i.Digest, audit.SizeWords(i.Size))
	if parsed, err := image.ParseReference(ref); err == nil && parsed.Tag != "" {
		fmt.Fprintf(p.app.stderr, "cofferdam: a tag can become another image; exactly this one is: %s\n", pinned(i, ref))
	}
	for _, note := range i.Notes {
		fmt.Fprintln(p.app.stderr, "  note:", inert(note, 300))
	}
	if n := len(i.Config.Ignored); n > 0 {
		fmt.Fprintf(p.app.stderr, "  note: %s of its configuration ignored; see: cofferdam image inspect %s\n", plural(n, "setting is", "settings are"), shortDigest(i.Digest))
	}
	return nil
}

// record puts a pull on record: what was kept, refused, or did not come.
func (p *imagePull) record(ctx context.Context, at image.Attempt) error {
	event := audit.Event{
		Kind: audit.ImagePulled, Principal: "user", Credential: p.flags.credential, Digest: at.Digest, BytesIn: at.Bytes, Verdict: "allow", Detail: at.Reference, Weaker: p.weaker,
	}
	if r, err := image.ParseReference(at.Reference); err == nil {
		event.Host = r.Host().String()
	}
	for i, host := range at.Hosts {
		if i == 0 {
			event.Detail += " from"
		}
		event.Detail += " " + host
	}
	if at.Err != nil {
		event.Verdict, event.Error = "", at.Err.Error()
		if slices.Contains([]fault.Kind{fault.Invalid, fault.Denied, fault.TooMany, fault.Unsupported}, fault.KindOf(at.Err)) {
			event.Verdict = "deny"
		}
		if errors.Is(at.Err, context.Canceled) {
			event.Error = "interrupted"
		}
	}
	return p.log.Append(ctx, event)
}
