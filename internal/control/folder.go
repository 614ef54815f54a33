package control

import (
	"fmt"

	"go.yaml.in/yaml/v4"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/policy"
)

// readsOnly says whether a policy lets a sandbox only read its folder. A policy that says nothing lets it write: the folder is the sandbox's own, or one that was
// given to it to be written, and no person's whom a mistake would cost something.
func readsOnly(p *policy.Policy) bool { return p.Workspace().Mode == policy.WorkspaceReadOnly }

func folderMode(readOnly bool) string {
	if readOnly {
		return policy.WorkspaceReadOnly.String()
	}
	return policy.WorkspaceReadWrite.String()
}

// folderFits refuses a policy that lets a sandbox only read its folder where it was made so that it can write: its keeper leaves the folder to the service.
func folderFits(d SandboxData, doc string) error {
	p, err := policy.Parse("", []byte(doc))
	if err != nil {
		return fmt.Errorf("the policy in force: %w", err)
	}
	if readsOnly(p) && !d.ReadOnly {
		return fault.New(fault.Conflict, "the policy lets it only read its folder, which it can write")
	}
	return nil
}

// What is said of a policy that asks for an overlay.
const (
	noOverlay     = "the server has no mode overlay: there is no folder of a person's whose changes could be looked at first"
	noOverlayHint = "write mode: rw or mode: ro, or leave it out, which means rw here"
)

// overlayLine is the line in which a document asks for an overlay itself, 0 if none does. Where nothing is said, the document's mode is an overlay too.
func overlayLine(doc string) int {
	_, root, err := rootOf(doc)
	if err != nil {
		return 0
	}
	mode := member(member(root, "workspace"), "mode")
	if mode == nil || mode.Value != policy.Overlay.String() {
		return 0
	}
	return mode.Line
}

// member is what a mapping has under a key, nil if it has nothing.
func member(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}
