package supervisor

import (
	"context"
	"errors"

	"github.com/cofferdam/cofferdam/internal/fault"
	"github.com/cofferdam/cofferdam/internal/isolation/vm"
	"github.com/cofferdam/cofferdam/internal/supervisor/call"
)

// levelsVM says which of the levels that are virtual machines this host can deliver.
func levelsVM(ctx context.Context, folder string) []call.Feature {
	var features []call.Feature
	for _, level := range vm.Levels() {
		f := call.Feature{Name: "level " + level, Remedy: vm.Remedy}
		detail, err := vm.Probe(ctx, folder, level)
		f.OK, f.Detail = err == nil, detail
		if err != nil {
			f.Detail = err.Error()
			if e, ok := errors.AsType[*fault.Error](err); ok {
				f.Detail = e.Public
			}
			if hint := fault.HintOf(err); hint != "" {
				f.Remedy = hint
			}
		}
		features = append(features, f)
	}
	return features
}
