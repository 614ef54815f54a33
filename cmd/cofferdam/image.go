package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/image"
)

// newImageCommand is "cofferdam image".
func (a *app) newImageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Keep images that sandboxes start from",
		Long: `Keep images: file systems that sandboxes start from instead of this machine's own system directories. They are pulled from a registry, verified by
their digests and unpacked once; a sandbox sees one read-only, with its own changes on top.

  cofferdam image pull registry.example.org/team/tool:1.2
  cofferdam run --image registry.example.org/team/tool:1.2 -- tool --help
  cofferdam image build default --recipe default
  cofferdam image list | inspect REF | rm REF | prune`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.newImagePullCommand(), a.newImageBuildCommand(), a.newImageListCommand(), a.newImageInspectCommand(), a.newImageRemoveCommand(), a.newImagePruneCommand())
	return cmd
}

func (a *app) images() (*image.Store, error) { return image.Open(a.imagesDir()) }

func (a *app) listImages() ([]image.Image, error) {
	store, err := a.images()
	if err != nil {
		return nil, err
	}
	return store.List()
}

// completeImages completes the names of images that are here, and the digests of those that have none.
func (a *app) completeImages(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list, err := a.listImages()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var found []cobra.Completion
	for _, i := range list {
		names := i.Names
		if len(names) == 0 {
			names = []string{shortDigest(i.Digest)}
		}
		for _, name := range names {
			if !slices.Contains(args, name) {
				found = append(found, name)
			}
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// someImages wants at least one reference.
func someImages(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return nil
	}
	return fault.New(fault.Invalid, "no image is named").WithHint("see what there is with: cofferdam image list; %s --help has examples", c.CommandPath())
}

// shortDigest is the part of a digest that people see and type.
func shortDigest(digest string) string {
	digits := strings.TrimPrefix(digest, "sha256:")
	return digits[:min(12, len(digits))]
}

// pinned is how an image is named that never becomes another.
func pinned(i image.Image, name string) string {
	r, err := image.ParseReference(name)
	if err != nil || r.Registry == "" {
		return i.Digest
	}
	return fmt.Sprintf("%s/%s@%s", r.Registry, r.Repository, i.Digest)
}
