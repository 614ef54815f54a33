package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/cofferdam/cofferdam/api"
	"github.com/cofferdam/cofferdam/internal/fault"
)

// versionOf is the version of an object that can be changed; false of anything else. Settings that were never changed have version 0.
func versionOf(v any) (int64, bool) {
	switch o := v.(type) {
	case api.Agent:
		return o.Version, true
	case api.Policy:
		return o.Version, true
	case api.Sandbox:
		return o.Version, true
	case api.Workspace:
		return o.Version, true
	case api.User:
		return o.Version, true
	case api.Settings:
		return o.Version, true
	case api.Denial:
		return o.Version, true
	case api.Approval:
		return o.Version, true
	case api.Rule:
		return o.Version, true
	case api.Upstream:
		return o.Version, true
	case api.Profile:
		return o.Version, true
	}
	return 0, false
}

// tag is the ETag of an object: its version, by which changes are guarded, and a hash of the whole, since some members (what is running, what was used)
// change without a change of the object.
func tag(v any) (string, error) {
	version, ok := versionOf(v)
	if !ok {
		return "", nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return `"` + strconv.FormatInt(version, 10) + "-" + hex.EncodeToString(sum[:6]) + `"`, nil
}

// matches says whether a client has what an ETag stands for.
func matches(h http.Header, etag string) bool {
	if etag == "" {
		return false
	}
	for _, field := range h.Values("If-None-Match") {
		for have := range strings.SplitSeq(field, ",") {
			have = strings.TrimPrefix(strings.TrimSpace(have), "W/")
			if have == etag || have == "*" {
				return true
			}
		}
	}
	return false
}

// ifMatch reads the version that a change is a change of: "12", or the whole ETag.
func ifMatch(field string) (int64, error) {
	inner, ok := strings.CutPrefix(field, `"`)
	if ok {
		inner, ok = strings.CutSuffix(inner, `"`)
	}
	number, _, _ := strings.Cut(inner, "-")
	version, err := strconv.ParseInt(number, 10, 64)
	if !ok || err != nil || version < 0 {
		return 0, fault.New(fault.Invalid, "If-Match is not an ETag of this object").WithHint(`send the ETag that the object was read with, as "3"`)
	}
	return version, nil
}

func errChanged() error {
	return fault.New(fault.Conflict, "somebody else has changed it meanwhile").WithHint("read it again, and repeat the change")
}

// precondition finds the version that a change is a change of, and refuses one that must have it and has not.
func (o *operation) precondition(c *call) error {
	if o.version == noVersion {
		return nil
	}
	field := strings.TrimSpace(c.request.Header.Get("If-Match"))
	if field == "" && o.version >= versionNeeded {
		return &refusal{status: http.StatusPreconditionRequired, code: codePrecondition, detail: "say which version this is a change of",
			hint: "read the object, and send its ETag as If-Match"}
	}
	if field == "" {
		return nil
	}
	var err error
	if c.version, err = ifMatch(field); err == nil && c.version == 0 && o.version != versionFromNone {
		err = errChanged() // control takes 0 for any, and nothing that is stored has it
	}
	return err
}
