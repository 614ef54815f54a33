package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// noAssertion is SPDX's word for what is not known.
const noAssertion = "NOASSERTION"

// The parts of an SPDX 2.3 document that are used here (https://spdx.github.io/spdx-spec/v2.3/).
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		DataLicense   string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID               string         `json:"SPDXID"`
		Name             string         `json:"name"`
		Version          string         `json:"versionInfo,omitempty"`
		Originator       string         `json:"originator,omitempty"`
		Homepage         string         `json:"homepage,omitempty"`
		Download         string         `json:"downloadLocation"`
		FilesAnalyzed    bool           `json:"filesAnalyzed"`
		Checksums        []spdxChecksum `json:"checksums,omitempty"`
		LicenceConcluded string         `json:"licenseConcluded"`
		LicenceDeclared  string         `json:"licenseDeclared"`
		LicenceComments  string         `json:"licenseComments,omitempty"`
		Copyright        string         `json:"copyrightText"`
		SourceInfo       string         `json:"sourceInfo,omitempty"`
		Comment          string         `json:"comment,omitempty"`
		Purpose          string         `json:"primaryPackagePurpose,omitempty"`
		Refs             []spdxRef      `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		From string `json:"spdxElementId"`
		Kind string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

// SBOM returns the image's bill of materials, an SPDX 2.3 document in JSON, for an image of that name. It says which packages there are, in which version and
// for which architecture, the digests of their archives, and the licences that their copyright files name. Equal images of one name have equal documents.
func (b *Built) SBOM(name string) ([]byte, error) {
	const image = "SPDXRef-Image"
	doc := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: name,
		Creation: spdxCreation{Created: b.Newest.UTC().Format(time.RFC3339), Creators: []string{"Tool: cofferdam"}},
		Packages: []spdxPackage{{
			ID: image, Name: name, Download: noAssertion, LicenceConcluded: noAssertion, LicenceDeclared: noAssertion, Copyright: noAssertion,
			Purpose: "CONTAINER", Comment: b.summary(),
		}},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", image}},
	}
	kind, vendor := b.purl()
	for i, p := range b.Packages {
		one := p.spdx(fmt.Sprintf("SPDXRef-Package-%d", i+1), kind, vendor)
		doc.Packages = append(doc.Packages, one)
		doc.Relationships = append(doc.Relationships, spdxRelationship{image, "CONTAINS", one.ID})
	}
	plain, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(plain) // the namespace has to be the document's own
	doc.Namespace = "https://spdx.org/spdxdocs/cofferdam-image-" + hex.EncodeToString(sum[:])
	return json.MarshalIndent(doc, "", " ")
}

// summary says where the document's list comes from.
func (b *Built) summary() string {
	contents := fmt.Sprintf("%d files, %d directories, %d symbolic links, %d bytes", b.Counts.Files, b.Counts.Dirs, b.Counts.Links, b.Counts.Bytes)
	switch b.Database {
	case "apt":
		return contents + "; all of it from the packages listed, which apt-get verified by signed indexes, and what was set up in place of their scripts"
	case "":
		return contents + "; there is no record of packages in it, so none is listed"
	}
	return contents + "; the packages are those that its own " + b.Database + " database names; other files may be in it"
}

// purl returns the type and namespace of package URLs (https://github.com/package-url/purl-spec).
func (b *Built) purl() (kind, vendor string) {
	kind, vendor = "deb", "debian"
	if b.Database == "apk" {
		kind, vendor = "apk", "alpine"
	}
	release, err := b.layer.read("etc/os-release")
	if err != nil {
		return kind, vendor
	}
	for line := range strings.Lines(string(release)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "ID="); ok {
			if id = strings.Trim(id, `"'`); id != "" && len(id) <= 64 {
				vendor = url.PathEscape(strings.ToLower(id))
			}
		}
	}
	return kind, vendor
}

func (p Package) spdx(id, kind, vendor string) spdxPackage {
	one := spdxPackage{
		ID: id, Name: p.Name, Version: p.Version, Download: noAssertion, Homepage: p.Homepage,
		LicenceConcluded: noAssertion, LicenceDeclared: expression(p.Licences), Copyright: noAssertion,
		Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", fmt.Sprintf("pkg:%s/%s/%s@%s?arch=%s", kind, vendor, url.PathEscape(p.Name), url.QueryEscape(p.Version), url.QueryEscape(p.Architecture))}},
	}
	if len(p.Licences) > 0 && one.LicenceDeclared == noAssertion {
		one.LicenceComments = "named by the package: " + strings.Join(p.Licences, ", ")
	}
	if p.Maintainer != "" {
		one.Originator = "Organization: " + p.Maintainer
	}
	if p.Source != "" {
		one.SourceInfo = "built from the source package " + p.Source
	}
	if p.SHA256 != "" {
		one.Checksums = []spdxChecksum{{"SHA256", p.SHA256}}
	}
	return one
}
