package policy

import (
	_ "embed" // for the schema and the starter
	"slices"
)

//go:embed schema.json
var schemaJSON []byte

//go:embed starter.yaml
var starterYAML []byte

// Schema returns the JSON Schema (2020-12) of policy files, for editors. It is a help: what Parse accepts is what counts, and Parse checks more.
func Schema() []byte { return slices.Clone(schemaJSON) }

// Starter returns a policy that allows nothing, with comments that show what could be written.
func Starter() []byte { return slices.Clone(starterYAML) }
