package policy

import (
	"strings"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// maxValue bounds one variable: the kernel refuses strings of an environment beyond 128 KiB (MAX_ARG_STRLEN).
const maxValue = 32 << 10

// ParseVariable reads the flag NAME=VALUE.
func ParseVariable(flag string) (name, value string, err error) {
	name, value, found := strings.Cut(flag, "=")
	if !found {
		return "", "", fault.New(fault.Invalid, "%.80q sets no variable", flag).WithHint("write NAME=VALUE")
	}
	return name, value, checkVariable(name, value)
}

// checkVariable never prints the value: it may be a secret.
func checkVariable(name, value string) error {
	if err := checkVariableName(name); err != nil {
		return err
	}
	if len(value) > maxValue {
		return fault.New(fault.Invalid, "variable %s: the value of %d bytes is longer than %d", name, len(value), maxValue).WithHint("mount a file instead")
	}
	if strings.IndexByte(value, 0) >= 0 {
		return fault.New(fault.Invalid, "variable %s: the value holds a NUL byte", name).WithHint("leave the byte out: no program can receive it")
	}
	return nil
}

func checkVariableName(name string) error {
	ok := name != "" && len(name) <= 128
	for i := range len(name) {
		c := name[i]
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || i > 0 && '0' <= c && c <= '9')
	}
	if !ok {
		return fault.New(fault.Invalid, "%.80q cannot be the name of a variable", name).
			WithHint("write a name of letters, digits and underscores that does not begin with a digit")
	}
	if strings.HasPrefix(name, "COFFERDAM_") {
		return fault.New(fault.Invalid, "variable %s: names that begin with COFFERDAM_ are Cofferdam's own", name).WithHint("choose another name")
	}
	return nil
}

// LooksLikeCredential reports whether a variable seems to hold a real credential, which has no place inside a sandbox: a token of a known shape,
// or a long value under a name such as API_TOKEN. It serves a warning, not a wall.
func LooksLikeCredential(name, value string) bool {
	for _, prefix := range []string{
		"ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "gldt-", "sk-", "sk_live_", "rk_live_", "xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xapp-",
		"AKIA", "ASIA", "AIza", "ya29.", "npm_", "pypi-", "hf_", "dop_v1_", "SG.", "shpat_", "dckr_pat_", "hvs.", "eyJ", "Bearer ", "Basic ",
	} {
		if strings.HasPrefix(value, prefix) && len(value) >= len(prefix)+12 {
			return true
		}
	}
	if strings.Contains(value, "-----BEGIN ") && strings.Contains(value, "PRIVATE KEY-----") {
		return true
	}
	if _, rest, ok := strings.Cut(value, "://"); ok { // a password in a URL
		authority, _, _ := strings.Cut(rest, "/")
		if user, _, ok := strings.Cut(authority, "@"); ok && strings.Contains(user, ":") {
			return true
		}
	}
	return len(value) >= 12 && !strings.HasPrefix(value, "cfd_") && !strings.ContainsAny(value, " /\\") && secretName(strings.ToUpper(name))
}

func secretName(upper string) bool {
	for _, part := range []string{"TOKEN", "SECRET", "PASSWORD", "PASSWD", "APIKEY", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY", "CREDENTIAL"} {
		if strings.Contains(upper, part) {
			return true
		}
	}
	return false
}
