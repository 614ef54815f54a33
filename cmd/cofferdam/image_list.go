package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/audit"
	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/image"
)

func (a *app) newImageListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List images", Args: cobra.NoArgs,
		Long: `List images, the newest first. An image whose last name went over to a newer one has none; cofferdam image prune --unnamed removes those.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.listImages()
			return show(a, cmd, list, err, a.printImages)
		},
	}
	jsonFlag(cmd)
	return cmd
}

func (a *app) printImages(list []image.Image) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.stderr, "cofferdam: there are no images; get one with: cofferdam image pull REGISTRY/NAME:TAG")
		return err
	}
	w := newTable(a.stdout)
	fmt.Fprintln(w, "NAME\tDIGEST\tSIZE\tHERE SINCE")
	for _, i := range list {
		names := i.Names
		if len(names) == 0 {
			names = []string{"-"}
		}
		for _, name := range names {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", inert(shortName(name), 300), shortDigest(i.Digest), audit.SizeWords(i.Size), since(i.Pulled))
		}
	}
	return w.Flush()
}

// shortName leaves out most of the digest in a name: it stands beside it.
func shortName(name string) string {
	repository, digest, pinned := strings.Cut(name, "@")
	if !pinned {
		return name
	}
	return repository + "@" + digest[:min(13, len(digest))] + "…"
}

func (a *app) newImageInspectCommand() *cobra.Command {
	var sbom bool
	cmd := &cobra.Command{
		Use:   "inspect REF",
		Short: "Show what is known of an image",
		Long: `Show what is known of an image, as JSON: where it came from, its configuration as far as it is honoured, what of it is ignored and why, and what was left
out of its files. With --sbom print its bill of materials instead, if it was built with one.

  cofferdam image inspect registry.example.org/team/tool:1.2
  cofferdam image inspect 3f9c2a --sbom > sbom.json`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fault.New(fault.Invalid, "one image at a time").WithHint("%s %s", c.CommandPath(), args[0])
			}
			return someImages(c, args)
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeImages(c, args, typed)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.images()
			if err != nil {
				return err
			}
			i, err := store.Find(args[0])
			if err != nil {
				return err
			}
			if sbom {
				return a.printSBOM(i, args[0])
			}
			return a.writeJSON(i)
		},
	}
	cmd.Flags().BoolVar(&sbom, "sbom", false, "print the bill of materials")
	return cmd
}

func (a *app) printSBOM(i image.Image, ref string) error {
	if i.SBOM == "" {
		return fault.New(fault.NotFound, "the image %s came without a bill of materials", inert(ref, 300)).WithHint("images that are built here have one: cofferdam image build --help")
	}
	f, err := os.Open(i.SBOM)
	if err != nil {
		return fmt.Errorf("read the bill of materials: %w", err)
	}
	defer f.Close()
	_, err = io.Copy(a.stdout, f)
	return err
}

func (a *app) newImageRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm REF...", Aliases: []string{"remove"}, Short: "Remove images",
		Long: `Remove names of images, and an image with its last name. A digest, or the beginning of one, stands for an image with all its names. An image that a sandbox
uses stays, with its names.`,
		Args: someImages, ValidArgsFunction: a.completeImages,
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.images()
			if err != nil {
				return err
			}
			for _, ref := range args {
				if err := a.removeImage(store, ref); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (a *app) removeImage(store *image.Store, ref string) error {
	before, err := store.Find(ref)
	if err != nil {
		return err
	}
	if err := store.Remove(ref); err != nil {
		return err
	}
	what := "removed " + cmp.Or(strings.Join(before.Names, ", "), shortDigest(before.Digest))
	if left, err := store.Find(before.Digest); err == nil {
		what = fmt.Sprintf("removed the name %s; the image stays as %s", ref, strings.Join(left.Names, ", "))
	}
	_, err = fmt.Fprintln(a.stderr, "cofferdam:", inert(what, 1000))
	return err
}

func (a *app) newImagePruneCommand() *cobra.Command {
	var unnamed bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove what killed pulls and builds have left", Args: cobra.NoArgs,
		Long: `Remove what pulls and builds have left that were killed; each pull does the same first. With --unnamed also images whose last name went over to a newer
image, and that no sandbox uses.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := a.images()
			if err != nil {
				return err
			}
			pruned, err := store.Prune(unnamed)
			return show(a, cmd, pruned, err, func(p image.Pruned) error {
				_, err := fmt.Fprintf(a.stderr, "cofferdam: removed %s and %s\n", plural(p.Leftovers, "left-over", "left-overs"), plural(len(p.Images), "image", "images"))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&unnamed, "unnamed", false, "also images that have lost their last name")
	jsonFlag(cmd)
	return cmd
}
