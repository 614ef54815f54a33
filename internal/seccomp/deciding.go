package seccomp

import "slices"

// Deciding returns p with one rule, without conditions, that alone decides about its calls.
func Deciding(r Rule, p Profile) Profile {
	rules := []Rule{r}
	for _, other := range p.Rules {
		other.Calls = slices.DeleteFunc(slices.Clone(other.Calls), func(call string) bool { return slices.Contains(r.Calls, call) })
		if len(other.Calls) > 0 {
			rules = append(rules, other)
		}
	}
	p.Rules = rules
	return p
}
