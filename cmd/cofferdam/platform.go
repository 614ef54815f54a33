package main

import (
	"github.com/spf13/cobra"

	"github.com/cofferdam/cofferdam/internal/policy"
)

// platform is the one of level gvisor's on which the sandbox is to run, where that is not its usual one.
func (e *execution) platform() string {
	if p := e.settled.policy.Platform(); p != 0 && p != policy.Systrap {
		return p.String()
	}
	return ""
}

// platformUsed names for the audit log a platform on which the sandbox really ran, and which is not the usual one.
func (e *execution) platformUsed() string {
	if e.created.PID == 0 {
		return ""
	}
	return platformDetail(e.platform())
}

// platformDetail names a platform in the detail of a record, empty for the usual one.
func platformDetail(platform string) string {
	if platform == "" {
		return ""
	}
	return " platform=" + platform
}

func completePlatforms(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, p := range policy.Platforms() {
		names = append(names, p.String())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
